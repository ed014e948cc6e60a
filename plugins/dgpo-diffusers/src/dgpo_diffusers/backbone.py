"""The base of every backbone that stands on diffusers.

A family is one small file: a `Layout`, and what it writes of the methods of `Family`.

Shape letters: B samples, C latent channels, F frames, H W height and width (of latents: h w). sigma = 1 is noise, 0 is
data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_diffusers.family import Family
from dgpo_diffusers.geometry import nearest_size
from dgpo_diffusers.libraries import quiet, truncated_prompts
from dgpo_diffusers.loading import load
from dgpo_diffusers.meta import load_meta

if TYPE_CHECKING:
    from dgpo_diffusers.options import DiffusersOptions
    from dgpo_schemas.sections.backbone import BackboneSection

__all__ = ["DiffusersBackbone"]


class DiffusersBackbone(Family):
    """A denoiser, an autoencoder and text encoders of diffusers; trains a peft LoRA, or the whole denoiser. Attributes
    as in `Family`."""

    without_weights: ClassVar[bool] = False
    """Whether only shapes, types and operations are the model's: prompts are zeros then, and weights random on another
    device than meta, for measuring what a card can do where no weights are to be had."""

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

    @classmethod
    def meta_model(cls, section: BackboneSection, options: Any) -> DiffusersBackbone:
        """The model without its weights; from a directory's configuration files, or a published model's name."""
        kind: type[DiffusersBackbone] = type(f"{cls.__name__}Sketch", (cls,), {"without_weights": True})
        return kind(section, options, device=torch.device("meta"))

    def base_directory(self) -> Path | None:
        """The pipeline's directory; of a Hub repository the snapshot."""
        place = self.pipeline.name_or_path
        return Path(place) if place else None

    def components(self) -> Mapping[str, nn.Module]:
        """The denoisers, the autoencoder and, unless they are offloaded, the text encoders."""
        others = {f"other {self.layout.denoiser}": module for module in self.others.values()}
        components = {self.layout.denoiser: self.network, **others, "autoencoder": self.vae}
        return components if self.options.offload_text else components | self._text()

    def offloaded_modules(self) -> Mapping[str, nn.Module]:
        """The text encoders, if they are offloaded."""
        return self._text() if self.options.offload_text else {}

    def _text(self) -> dict[str, nn.Module]:
        return {"text encoders": nn.ModuleList(self._encoders())}

    def _encoders(self) -> list[nn.Module]:
        return [encoder for name in self.layout.encoders if (encoder := getattr(self.pipeline, name)) is not None]

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """The text encoders are on the device inside, wherever they are kept."""
        try:
            for module in self.offloaded_modules().values():
                module.to(self.device)
            yield
        finally:
            for module in self.offloaded_modules().values():
                module.to("cpu")

    @property
    def module(self) -> nn.Module:
        """The denoiser that is trained, adapter included."""
        module = self.network
        assert isinstance(module, nn.Module)
        return module

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """What `embed` gives, in the frozen weights' dtype."""
        if self.without_weights:
            count, device = len(prompts), next(self.network.parameters()).device
            rows = {n: torch.zeros(count, *s, dtype=self.dtype, device=device) for n, s in self.rows().items()}
            return Conditioning(rows)
        # The libraries say of each prompt that is too long what is cut off; `truncated_prompts` counts them, once.
        with torch.autocast(self.device.type, enabled=False), quiet():
            return self.embed(prompts)

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Prompts that none of the `readers` reads to their end."""
        texts = [prompt.text for prompt in prompts]
        return truncated_prompts(texts, [reader for reader in self.readers() if reader[0] is not None])

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """`latents` for this size in pixels. Raises UserError naming the nearest of the possible `sides`."""
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
        """The times that the network knows."""
        return self.prediction.sigma_range

    def start(self, sigma: float) -> float:
        """As the parameterization says."""
        return self.prediction.start(sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """As the parameterization says."""
        return self.prediction.loss_weight(sigma)

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction as a velocity, float32 [B, ...]. Computed in the weights' dtype, or autocast's.

        With two denoisers a sample goes to the one that its sigma belongs to. Raises UserError where a gradient is
        wanted at times of the frozen one alone.
        """
        given = {n: t.to(self.dtype) if t.is_floating_point() else t for n, t in conditioning.tensors.items()}
        x = self.prediction.state(x_sigma, sigma).to(self.dtype)
        inputs = x, self.prediction.time(sigma), Conditioning(given, conditioning.lengths)
        return self.prediction.velocity(self._output(sigma, *inputs), x_sigma, sigma)

    def _output(self, sigma: Tensor, x: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        if not self.others:
            return self.predict(self.network, x, time, conditioning).float()
        mine, advice = self.belonging(sigma)
        if bool(mine.all()):
            return self.predict(self.network, x, time, conditioning).float()
        (other,) = self.others.values()
        if not bool(mine.any()):
            if torch.is_grad_enabled():
                raise UserError(
                    f"timesteps: sigma {float(sigma[0]):.4g} belongs to this checkpoint's other "
                    f"{self.layout.denoiser}, of which nothing is trained {advice}"
                )
            return self.predict(other, x, time, conditioning).float()
        out = torch.empty_like(x, dtype=torch.float32)
        for network, rows in ((self.network, mine), (other, ~mine)):
            its = conditioning.rows(rows.nonzero().flatten().tolist())
            out[rows] = self.predict(network, x[rows], time[rows], its).float()
        return out

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B, ...] to images [B, 3, H, W] or videos [B, F, 3, H, W] in [0, 1], `decode_chunk` at a time.

        In float32 whatever the other weights' dtype: rewards look at details (small text, edges) that half precision
        smears, and the autoencoder is a small part of the cost.
        """
        with torch.autocast(self.device.type, enabled=False):
            pixels = torch.cat(
                [self.to_pixels(component) for component in torch.split(x0.float(), self.options.decode_chunk)]
            )
        return ((pixels.transpose(1, 2) if self.media == "video" else pixels) * 0.5 + 0.5).clamp(0, 1)

    def save_weights(self, directory: Path) -> None:
        """A directory for the denoiser's `from_pretrained`, in float32."""
        self.network.save_pretrained(directory)
