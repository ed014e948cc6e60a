"""Base class of all diffusers backbones.

A model family is one small file: a `Layout`, and the methods of `Family` that it overrides.

Shape letters: B samples, C latent channels, F frames, H W height and width (of latents: h w). sigma = 1 is noise, 0 is
data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_diffusers.family import Family
from dgpo_diffusers.feature_cache import FeatureCache
from dgpo_diffusers.geometry import nearest_size
from dgpo_diffusers.libraries import quiet, truncated_prompts
from dgpo_diffusers.loading import load
from dgpo_diffusers.meta import load_meta

if TYPE_CHECKING:
    from dgpo_diffusers.options import DiffusersOptions
    from dgpo_schemas.sections.backbone import BackboneSection

__all__ = ["DiffusersBackbone"]


class DiffusersBackbone(Family):
    """A denoiser, an autoencoder and text encoders of diffusers. Trains a LoRA adapter (peft), or the whole denoiser.
    See `Family` for the attributes."""

    without_weights: ClassVar[bool] = False
    """Whether the model is built without its weights: prompt embeddings are zeros, and weights on a device other than
    meta are random. Used to measure performance and memory without a download."""

    def __init__(self, section: BackboneSection, options: DiffusersOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        self.pipeline = (load_meta if self.without_weights else load)(self)
        self.vae = self.pipeline.vae
        networks = {name: net for name in self.layout.networks if (net := getattr(self.pipeline, name)) is not None}
        self.network = networks.pop(self.trained(networks))
        self.others = networks
        self.dtype = self.network.dtype
        self.prediction = self.parameterize()
        staying = [self.vae, self.network, *networks.values()]
        for model in (*self._encoders(), *staying):
            model.eval().requires_grad_(False)
        if section.train == "lora":
            self.adapter = DiffusersAdapter(self.network, section.lora, layout=self.layout, base=section.checkpoint)
        else:
            self.network.requires_grad_(True)
        for model in staying if options.offload_text else (*self._encoders(), *staying):
            model.to(device)
        if section.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if section.compile:
            for network in (self.network, *networks.values()):
                network.compile()  # in place: parameters keep their names
        self._cache = self._feature_cache()

    @classmethod
    def meta_model(cls, section: BackboneSection, options: Any) -> DiffusersBackbone:
        """Build the model without its weights, from a directory's configuration files or a published model's name."""
        kind: type[DiffusersBackbone] = type(f"{cls.__name__}Meta", (cls,), {"without_weights": True})
        return kind(section, options, device=torch.device("meta"))

    def base_directory(self) -> Path | None:
        """The pipeline's directory; of a Hub repository the snapshot."""
        place = self.pipeline.name_or_path
        return Path(place) if place else None

    def components(self) -> Mapping[str, nn.Module]:
        """Return the denoisers, the autoencoder and, unless offloaded, the text encoders."""
        others = {f"other {self.layout.denoiser}": module for module in self.others.values()}
        components = {self.layout.denoiser: self.network, **others, "autoencoder": self.vae}
        return components if self.options.offload_text else components | self._text()

    def offloaded_modules(self) -> Mapping[str, nn.Module]:
        """Return the text encoders, if they are offloaded."""
        return self._text() if self.options.offload_text else {}

    def _text(self) -> dict[str, nn.Module]:
        return {"text encoders": nn.ModuleList(self._encoders())}

    def _encoders(self) -> list[nn.Module]:
        return [encoder for name in self.layout.encoders if (encoder := getattr(self.pipeline, name)) is not None]

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Keep the text encoders on the device while the context is active."""
        try:
            for module in self.offloaded_modules().values():
                module.to(self.device)
            yield
        finally:
            for module in self.offloaded_modules().values():
                module.to("cpu")

    def _feature_cache(self) -> FeatureCache | None:
        settings = self.options.rollout_cache
        if settings is None:
            return None
        if self.section.compile:
            raise UserError(
                "backbone.options.rollout_cache: layers of a compiled model cannot be cached; set compile: false"
            )
        return FeatureCache(self.network, settings, self.layout, self.dtype)

    def sampling(self) -> AbstractContextManager[None] | None:
        """Return the context of the feature cache, if one is configured."""
        return None if self._cache is None else self._cache.active()

    @property
    def module(self) -> nn.Module:
        """The trained denoiser, including the adapter."""
        module = self.network
        assert isinstance(module, nn.Module)
        return module

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode prompts with `embed`, in the dtype of the frozen weights."""
        if self.without_weights:
            count, device = len(prompts), next(self.network.parameters()).device
            rows = {n: torch.zeros(count, *s, dtype=self.dtype, device=device) for n, s in self.rows().items()}
            return Conditioning(rows)
        # The libraries warn about each truncated prompt; `truncated_prompts` reports their number once.
        with torch.autocast(self.device.type, enabled=False), quiet():
            return self.embed(prompts)

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Return the prompts that all `readers` truncate, and the largest supported number of tokens."""
        texts = [prompt.text for prompt in prompts]
        return truncated_prompts(texts, [reader for reader in self.readers() if reader[0] is not None])

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the latent shape for a size in pixels. Raises UserError with the nearest possible size (`sides`)."""
        sides = self.sides()
        nearest = nearest_size((height, width), sides)
        if nearest != (height, width):
            first, second = (f"multiples of {side.step} from {side.start} to {side[-1]}" for side in sides)
            rule = f"both sides must be {first}" if first == second else f"heights must be {first}, widths {second}"
            raise UserError(
                f"rollout.resolution: {height}x{width} (height x width) is not possible with this checkpoint: {rule}; "
                f"the nearest is {nearest[0]}x{nearest[1]}"
            )
        return self.latents(height, width)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Range of sigma that the network supports."""
        return self.prediction.sigma_range

    def start(self, sigma: float) -> float:
        """See `FlowPrediction.start`."""
        return self.prediction.start(sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """See `FlowPrediction.loss_weight`."""
        return self.prediction.loss_weight(sigma)

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, float32 [B, ...]. The network runs in the dtype of its weights, or of autocast.

        With two denoisers, each sample uses the one for its sigma. Raises UserError if a gradient is required and all
        sigmas belong to the frozen denoiser.
        """
        given = {n: t.to(self.dtype) if t.is_floating_point() else t for n, t in conditioning.tensors.items()}
        x = self.prediction.state(x_sigma, sigma).to(self.dtype)
        inputs = x, self.prediction.time(sigma), Conditioning(given, conditioning.lengths)
        with nullcontext() if self._cache is None else self._cache.passing(len(x)):
            output = self._output(sigma, *inputs)
        return self.prediction.velocity(output, x_sigma, sigma)

    def _output(self, sigma: Tensor, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        if not self.others:
            return self.predict(self.network, x, time, conditioning).float()
        trained, advice = self.belonging(sigma)
        if bool(trained.all()):
            return self.predict(self.network, x, time, conditioning).float()
        (other,) = self.others.values()
        if not bool(trained.any()):
            if torch.is_grad_enabled():
                raise UserError(
                    f"timesteps: sigma {float(sigma[0]):.4g} belongs to this checkpoint's other "
                    f"{self.layout.denoiser}, which is not trained {advice}"
                )
            return self.predict(other, x, time, conditioning).float()
        out = torch.empty_like(x, dtype=torch.float32)
        for network, rows in ((self.network, trained), (other, ~trained)):
            selected = conditioning.rows(rows.nonzero().flatten().tolist())
            out[rows] = self.predict(network, x[rows], time[rows], selected).float()
        return out

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents [B, ...] to images [B, 3, H, W] or videos [B, F, 3, H, W] in [0, 1], `decode_chunk` at a time.

        Decoding runs in float32, since half precision blurs details that rewards depend on (small text, edges), and the
        autoencoder is a small part of the cost.
        """
        with torch.autocast(self.device.type, enabled=False):
            pixels = torch.cat([self.to_pixels(chunk) for chunk in torch.split(x0.float(), self.options.decode_chunk)])
        return ((pixels.transpose(1, 2) if self.media == "video" else pixels) * 0.5 + 0.5).clamp(0, 1)

    def save_weights(self, directory: Path) -> None:
        """Save the denoiser in float32, for its `from_pretrained`."""
        self.network.save_pretrained(directory)
