"""Base class of all diffusers backbones.

A model family is one small file: a `Layout`, and the methods of `Family` that it overrides.

Shape letters: B samples, C latent channels, F frames, H W height and width (of latents: h w). sigma = 1 is noise, 0 is
data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.adapter_files import DiffusersAdapter
from dgpo_diffusers.compiling import compile_blocks
from dgpo_diffusers.family import Family
from dgpo_diffusers.feature_cache import FeatureCache
from dgpo_diffusers.geometry import nearest_size
from dgpo_diffusers.identity import encoder_identity
from dgpo_diffusers.libraries import quiet, truncated_prompts
from dgpo_diffusers.loading import Deferred, load
from dgpo_diffusers.merging import write_merged
from dgpo_diffusers.meta import load_meta
from dgpo_diffusers.norms import fuse_norms
from dgpo_diffusers.offload import check_offload, offload, resident_bytes
from dgpo_diffusers.quantization import check, chosen
from dgpo_diffusers.quantized import dequantize_again, layers_to_quantize, place, stored_bytes
from dgpo_diffusers.signatures import remember_signatures
from dgpo_diffusers.tiny_decoder import load_tiny_decoder

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
    supports_fast = frozenset({"adapter", "norms"})
    _without_autocast = False
    """Whether the network runs in the dtype of its weights, also inside of an autocast context."""
    without_denoisers: ClassVar[bool] = False
    """Whether the denoisers are built without their weights, for embeddings alone."""

    def __init__(self, section: BackboneSection, options: DiffusersOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        for key, message in options.contradictions(section):
            raise UserError(f"{key}: {message}")
        check(self)
        check_offload(options, device)
        self._away = options.offload_text or options.group_offload is not None
        self._deferred: Deferred = {}
        self._identity: str | None = None
        if self.without_weights:
            self.pipeline = load_meta(self)
        else:
            left_out = self.layout.networks if self.without_denoisers else ()
            self.pipeline, self._deferred = load(self, without=left_out)
        self.vae = self.pipeline.vae
        networks = {name: net for name in self.layout.networks if (net := getattr(self.pipeline, name)) is not None}
        self.network = networks.pop(self.trained(networks))
        self.others = networks
        self.dtype = self.network.dtype
        quantized = {
            model.get_submodule(layer): method
            for name, method in chosen(self).items()
            if (model := getattr(self.pipeline, name)) is not None
            for layer in layers_to_quantize(model)
        }
        self._quantized = {layer.weight: method for layer, method in quantized.items()}
        if device.type == "meta" or not self.without_weights:
            dequantize_again(n for n, m in quantized.items() if device.type == "meta" or m.startswith("torchao"))
        self.prediction = self.parameterize()
        whole = not self.without_denoisers
        self.tiny_decoder = load_tiny_decoder(self, without_weights=self.without_weights) if whole else None
        denoisers = [self.network, *networks.values()] if whole else []
        staying = [self.vae, *([] if self.tiny_decoder is None else [self.tiny_decoder]), *denoisers]
        for model in (*self._encoders(), *staying):
            model.eval().requires_grad_(False)
        if whole and section.train == "lora":
            self.adapter = DiffusersAdapter(self.network, section.lora, layout=self.layout, base=section.checkpoint)
        elif whole:
            self.network.requires_grad_(True)
        for model in staying:
            place(model, device)
        self._place_encoders(self._encoders())
        if whole and section.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        for network in denoisers:
            if not section.compile:
                remember_signatures(network)
            elif device.type != "meta":
                compile_blocks(network, self.blocks() if network is self.network else (), ragged=self.ragged)
        self._cache = self._feature_cache() if whole else None

    @classmethod
    def meta_model(cls, section: BackboneSection, options: Any) -> DiffusersBackbone:
        """Build the model without its weights, from a directory's configuration files or a published model's name."""
        kind: type[DiffusersBackbone] = type(f"{cls.__name__}Meta", (cls,), {"without_weights": True})
        return kind(section, options, device=torch.device("meta"))

    @classmethod
    def encoder_model(cls, section: BackboneSection, options: Any, *, device: torch.device) -> DiffusersBackbone:
        """Build the model without the weights of its denoisers. Its class has the same name: it has the same rows."""
        same = {"without_denoisers": True, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        kind: type[DiffusersBackbone] = type(cls.__name__, (cls,), same)
        return kind(section, options, device=device)

    def base_directory(self) -> Path | None:
        """The pipeline's directory; of a Hub repository the snapshot."""
        place = self.pipeline.name_or_path
        return Path(place) if place else None

    def components(self) -> Mapping[str, nn.Module]:
        """Return the denoisers, the autoencoder and, unless offloaded or not loaded yet, the text encoders."""
        others = {f"other {self.layout.denoiser}": module for module in self.others.values()}
        components = {self.layout.denoiser: self.network, **others, "autoencoder": self.vae}
        if self.tiny_decoder is not None:
            components["tiny decoder"] = self.tiny_decoder
        return components if self._away else components | self._text()

    def offloaded_modules(self) -> Mapping[str, nn.Module]:
        """Return the text encoders, if they are offloaded."""
        return self._text() if self._away else {}

    def offloaded_bytes(self) -> tuple[int, int]:
        """See `Backbone.offloaded_bytes`. With group offloading, less than all weights are there at a time."""
        level = self.options.group_offload
        return (
            super().offloaded_bytes() if level is None else resident_bytes(self._encoders(), level, self.weight_bytes)
        )

    def loaded_weights(self) -> Mapping[str, str]:
        """Return, for each model that was loaded, the number of its tensors and the tensors of its files not used."""
        return self.report

    def weight_bytes(self, weight: Tensor) -> int:
        """Return the bytes of a weight, of a quantized one those of its integers and scales."""
        method = self._quantized.get(weight)
        return super().weight_bytes(weight) if method is None else stored_bytes(method, weight)

    def _text(self) -> dict[str, nn.Module]:
        return {"text encoders": nn.ModuleList(self._encoders())}

    def _encoders(self) -> list[nn.Module]:
        loaded = [name for name in self.layout.encoders if name not in self._deferred]
        return [encoder for name in loaded if (encoder := getattr(self.pipeline, name)) is not None]

    def encoder_identity(self) -> str | None:
        """See `identity.encoder_identity`. None for a model without weights, whose rows are zeros."""
        directory = self.base_directory()
        if self.without_weights or directory is None:
            return None
        found = encoder_identity(self, directory)
        self._identity = self._identity or found  # the first one: rows on disk are under it
        return found

    def _load_encoders(self) -> None:
        """Load the text encoders that were left out, because all rows so far were on disk.

        Raises UserError if the checkpoint was changed since then.
        """
        if not self._deferred:
            return
        if (known := self._identity) is not None and self.encoder_identity() != known:
            raise UserError(
                f"backbone.checkpoint: files of {self.base_directory()} have changed since the model was loaded, and "
                "its text encoders are needed now; start again"
            )
        models = {name: make() for name, make in self._deferred.items()}
        self._deferred = {}
        for name, model in models.items():
            setattr(self.pipeline, name, model.eval().requires_grad_(False))
        self._place_encoders(list(models.values()))

    def _place_encoders(self, encoders: Sequence[nn.Module]) -> None:
        if self.options.group_offload is not None and self.device.type != "meta":
            offload(encoders, self.options.group_offload, self.device, home=torch.device("cpu"))
        elif not self._away:
            for encoder in encoders:
                place(encoder, self.device)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """Keep the text encoders on the device while the context is active. Loads them if they were left out."""
        self._load_encoders()
        moved = list(self._text().values()) if self.options.offload_text else []
        try:
            for module in moved:
                module.to(self.device)
            with quiet():  # once instead of for each prompt, which would cost as much as a small text encoder
                yield
        finally:
            for module in moved:
                module.to("cpu")

    def _feature_cache(self) -> FeatureCache | None:
        settings = self.options.rollout_cache
        return None if settings is None else FeatureCache(self.network, settings, self.layout, self.dtype)

    def sampling(self) -> AbstractContextManager[None] | None:
        """Return the context of the feature cache, if one is configured."""
        return None if self._cache is None else self._cache.active()

    def speed_up(self, parts: Collection[str]) -> Mapping[str, str]:
        """See `Backbone.speed_up`."""
        found = {}
        if "adapter" in parts:
            assert isinstance(self.adapter, DiffusersAdapter)
            self.adapter.speed_up(self.dtype)
            self._without_autocast = True
        if "norms" in parts:
            found["norms"] = str(fuse_norms([self.network, *self.others.values()]))
        return found

    @property
    def module(self) -> nn.Module:
        """The trained denoiser, including the adapter."""
        module = self.network
        assert isinstance(module, nn.Module)
        return module

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode prompts with `embed`, in the dtype of the frozen weights."""
        return self._encoded(self.embed, prompts)

    def unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode the unconditional branch of guidance with `embed_unconditional`."""
        return self._encoded(self.embed_unconditional, prompts)

    @torch.no_grad()
    def _encoded(self, embed: Callable[[Sequence[Prompt]], Conditioning], prompts: Sequence[Prompt]) -> Conditioning:
        if self.without_weights:
            count, device = len(prompts), next(self.network.parameters()).device
            size = prompts[0].size
            assert size is not None, "every prompt has a size"
            shapes = [(n, s, self.dtype) for n, s in self.rows().items()]
            shapes += [(n, s, torch.float32) for n, s in self.condition_rows(*size).items()]
            return Conditioning({n: torch.zeros(count, *s, dtype=dtype, device=device) for n, s, dtype in shapes})
        self._load_encoders()
        # The libraries warn about each truncated prompt; `truncated_prompts` reports their number once.
        with torch.autocast(self.device.type, enabled=False), quiet():
            return embed(prompts)

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
        passing = nullcontext() if self._cache is None else self._cache.passing(len(x))
        own = torch.autocast(self.device.type, enabled=False) if self._without_autocast else nullcontext()
        with passing, own:
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

    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents [B, ...] to images [B, 3, H, W] or videos [B, F, 3, H, W] in [0, 1], `decode_chunk` at a time.

        Decoding runs in float32, since half precision blurs details that rewards depend on (small text, edges), and the
        autoencoder is a small part of the cost. On CUDA, its products and convolutions are TF32 unless `precision.tf32`
        is false.
        """
        tiny = self.tiny_decoder if self.options.tiny_decoder and self.options.tiny_decoder.evaluation else None
        return self._decoded(x0, tiny or self.to_pixels)

    def decode_rollouts(self, x0: Tensor) -> Tensor:
        """Like `decode`, with the tiny decoder if there is one."""
        return self._decoded(x0, self.tiny_decoder or self.to_pixels)

    @torch.no_grad()
    def _decoded(self, x0: Tensor, to_pixels: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            pixels = torch.cat([to_pixels(chunk) for chunk in torch.split(x0.float(), self.options.decode_chunk)])
        return ((pixels.transpose(1, 2) if self.media == "video" else pixels) * 0.5 + 0.5).clamp(0, 1)

    def save_weights(self, directory: Path) -> None:
        """Save the denoiser in float32, for its `from_pretrained`."""
        self.network.save_pretrained(directory)

    def save_merged(self, directory: Path, dtype: Literal["float32"] | None) -> None:
        """Save the denoiser with the adapter merged in float32, for its `from_pretrained`."""
        assert isinstance(self.adapter, DiffusersAdapter)
        write_merged(self.network, self.adapter.merged_weights, directory, None if dtype is None else torch.float32)
