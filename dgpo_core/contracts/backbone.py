"""The backbone contract: diffusion and flow models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    import torch
    from torch import Tensor

    from dgpo_core.contracts.adapter import Adapter
    from dgpo_schemas.sections.backbone import BackboneSection

__all__ = ["SECTION_KEYS", "Backbone"]

SECTION_KEYS = frozenset({
    "checkpoint", "revision", "train: lora", "train: full", "lora.rank", "lora.alpha", "lora.targets", "lora.init",
    "lora.rslora", "lora.dora", "dtype", "gradient_checkpointing", "compile",
})  # fmt: skip
"""Settings of `BackboneSection` that a class may support, besides its `options`. The two values of `train` are listed
separately. `cache` requires `Backbone.encoder_identity` instead."""


class Backbone(ABC):
    """A diffusion or flow model: encodes prompts, predicts velocities, decodes latents to media."""

    media: ClassVar[Literal["image", "video"]] = "image"
    """Media type that `decode` returns. A run with a reward that does not score this type fails before the first
    sample."""
    fps: float | None = None
    """Frames per second of the videos the model was trained on; None for images. Rewards receive it as `Prompt.fps`. A
    property if it depends on the checkpoint."""
    adapter: Adapter | None = None
    """The adapter trained with `train: lora`, set in `__init__`: `self.adapter = LoraAdapter(...)`. None with
    `train: full`, where every weight is trained and the engine keeps a copy of the base weights. A run with
    `train: lora` fails if the backbone has no adapter."""

    uses: ClassVar[frozenset[str]] = SECTION_KEYS
    """Settings of `BackboneSection` that this class supports, by default all. To exclude some:
    `uses = Backbone.uses - {"compile", "train: lora"}`. A run file that sets an unsupported one fails before anything
    is loaded. `dgpo plugins check` checks the supported ones where it can: frozen weights have dtype `dtype`, trained
    weights are float32; `gradient_checkpointing` recomputes activations and leaves the gradients unchanged;
    `checkpoint` is resolved by `dgpo_core.weights.resolve_checkpoint`, which also accepts `package:NAME/path`."""

    supports_fast: ClassVar[frozenset[str]] = frozenset()
    """Keys of `precision` that can be `fast` with this class, of `adapter` and `norms`; see `speed_up`. By default
    none: a run file that sets one fails before anything is loaded."""

    def __init__(self, section: BackboneSection, options: Any, *, device: torch.device) -> None:
        """Load the checkpoint `section.checkpoint` and prepare the model for training on `device`.

        Raises UserError if the checkpoint is missing or has another architecture, or if the LoRA targets match no
        module (listing the candidates).
        """
        self.section = section
        self.options = options
        self.device = device

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The network that `velocity` runs, including the adapter."""

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """Return the trained parameters, float32, keyed by stable names.

        By default the adapter's parameters; without an adapter, the parameters of `module` that require gradients.
        """
        if self.adapter is not None:
            return self.adapter.parameters()
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def trained_options(self) -> frozenset[str]:
        """Return the names of options that select which part of the checkpoint is trained, such as one of two experts.

        A run does not start from the weights of a run with other values of them. By default none.
        """
        return frozenset()

    def speed_up(self, parts: Collection[str]) -> Mapping[str, str]:
        """Compute parts of `module` faster from now on, with other roundings.

        parts: those of `supports_fast` that a run chose. `adapter`: `module` runs in the dtype of the frozen weights,
        also inside of an autocast context, and calls `Adapter.speed_up`. `norms`: normalization layers are computed by
        fused kernels. Called once at most, before the first pass and before the model is compiled or sharded. Returns
        for each part what to tell users about it, such as "61 RMSNorm"; by default nothing.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement speed_up")

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode prompts to conditioning, one row per prompt, on `device`, without gradient.

        Every prompt has a size. Rows must not depend on each other, so that the engine can cache and regroup them; a
        row depends only on `Prompt.key`. All rows have the same shape, except in the sequence length of the tensors
        listed in `Conditioning.lengths`.
        """

    @property
    def supports_guidance(self) -> bool:
        """Whether the model has an unconditional prediction for classifier-free guidance.

        Return False for guidance-distilled models; the guidance scale is then always 1.
        """
        return True

    def unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode the unconditional branch of guidance, one row per prompt, with the same guarantees as `encode`.

        By default the encoding of the negative prompt, or of "", with the prompt's media and size. A row depends only
        on the negative prompt, the media and the size. Called only if `supports_guidance`.
        """
        return self.encode([replace(prompt, text=prompt.negative or "") for prompt in prompts])

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Combine two velocities [B, ...] at x_sigma [B, ...] and sigma [B] into the guided velocity [B, ...].

        `guidance` is the guidance scale s, diffusers' `guidance_scale`, and differs from 1. By default classifier-free
        guidance, v_u + s * (v_c - v_u) (Ho and Salimans, arXiv 2207.12598).
        """
        return unconditional + guidance * (conditional - unconditional)

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """Return the model's noise schedule for `steps` solver steps at this size in pixels. By default unshifted.

        A run file can override the shift.
        """
        return Schedule()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Range (low, high) of times that `velocity` accepts, 0 <= low < high <= 1. By default (0, 1).

        The samplers' final time 0 is exempt. A run that would sample or train outside the range fails before the first
        sample. `timesteps.t_max` defaults to the upper end.
        """
        return 0.0, 1.0

    def start(self, sigma: float) -> float:
        """Return the scale of the initial noise at sigma, the first time of a schedule.

        Sampling starts from `start(sigma) * noise` with standard normal noise. By default 1, correct for schedules that
        start at 1. A variance-preserving model, whose initial state has variance 1 in its own coordinates, returns
        sqrt((1 - sigma)^2 + sigma^2).
        """
        return 1.0

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """Return the factor [B] of the squared velocity error at sigma [B], on the device of `sigma`.

        The weighted error is the one the model was trained with: (1 - sigma)^2 for a model that predicts the noise.
        Objectives receive the factor as `Predictions.loss_weight`. None, the default, means 1 at every time.
        """
        return None

    def example(self, size: tuple[int, int]) -> Prompt:
        """Return any valid prompt of this size (height, width), by default an empty text.

        Models that require conditioning media return a prompt with media.
        """
        return Prompt("", size=size)

    def bucket(self, prompt: Prompt) -> Hashable:
        """Return the batching key of a prompt, by default its size.

        Samples of the same size and key can share a micro-batch: their latents and conditioning have the same shape.
        Include everything else that the shape depends on, such as the number of conditioning media.
        """
        return prompt.size

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, naming the prompt, if the model does not accept one of the prompts.

        Called with all prompts of a run when the run is built. By default rejects prompts with media. A model that
        accepts media checks their number, kind and size here; all of them are known to be readable.
        """
        for prompt in prompts:
            if prompt.media:
                path = f" ({clean(prompt.media[0].path, 300)})" if prompt.media[0].path else ""
                raise UserError(
                    f"{f'{prompt.origin}: ' if prompt.origin else ''}the prompt has media{path}, but the backbone "
                    f"{self.section.use} accepts only text: remove `media`, or use an editing or image-to-video model"
                )

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Return the indices of prompts that every text encoder truncates, and the maximum number of tokens.

        The engine warns about these prompts before the run. By default ((), 0).
        """
        return (), 0

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one latent, without the batch dimension, for media of this size in pixels.

        Raises UserError for an unsupported size. The message starts with `rollout.resolution: ` and names the nearest
        supported size; if the size is a prompt's own, the engine replaces the prefix by the prompt.
        """

    @abstractmethod
    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity noise - x0 at x_sigma = (1 - sigma) * x0 + sigma * noise.

        x_sigma float32 [B, ...]; sigma float32 [B] in `sigma_range`; returns float32 [B, ...].
        """

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Decode latents [B, ...] to images [B, 3, H, W] or videos [B, F, 3, H, W], float32 in [0, 1], no gradient.

        Decode in chunks, so that any B fits in memory.
        """

    def decode_rollouts(self, x0: Tensor) -> Tensor:
        """Decode the latents of training rollouts, which rewards score; the same shapes and range as `decode`.

        By default `decode`. A backbone may use a cheaper decoder here; evaluations use `decode`.
        """
        return self.decode(x0)

    def save_weights(self, directory: FilePath) -> None:
        """Write the current weights of a run with `train: full` to `directory`, created if missing.

        Use a format that other libraries load. By default `weights.safetensors`, with the names of `trainable`.
        """
        import safetensors.torch

        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: p.detach().cpu().clone().contiguous() for name, p in self.trainable().items()}
        safetensors.torch.save_file(weights, directory / "weights.safetensors", {"format": "pt"})

    def save_merged(self, directory: FilePath, dtype: Literal["float32"] | None) -> None:
        """Write all weights of the network with the current adapter merged to `directory`, created if missing.

        Merge in float32 and write in `dtype`; None means the dtypes of the base weights. Optional: used by `dgpo export
        --format merged`. Raises UserError if the base weights cannot hold the update, such as quantized ones.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement save_merged")

    def base_directory(self) -> FilePath | None:
        """Return the directory that the base weights were read from, by default `backbone.checkpoint` if it is one.

        Runs store digests of its files and detect changed base weights on resume. None disables the check.
        """
        from pathlib import Path

        place = Path(self.section.checkpoint)
        return place if place.is_dir() else None

    def encoder_identity(self) -> str | None:
        """Return a text that differs whenever a row of `encode` or `unconditional` for the same prompt may differ.

        It is part of the key of the embeddings that `backbone.cache` keeps on disk. It covers the code, the files of
        the text encoders, tokenizers and autoencoder, `backbone.dtype`, the options that rows depend on, and versions
        of libraries; the engine adds torch, the device and the precision. None, the default, means that rows must not
        be kept. With `section.cache` set, the text encoders may be loaded in `encoding`, when a row is missing.
        """
        return None

    @classmethod
    def meta_model(cls, section: BackboneSection, options: Any) -> Backbone:
        """Build the model on torch's meta device, from its config files or a known checkpoint name.

        The model has shapes, dtypes and operations but no weights; `encode` returns rows of the right shape. Optional:
        used by `dgpo plan`. Raises UserError if the architecture of the checkpoint is unknown.
        """
        raise NotImplementedError(f"{cls.__name__} does not implement meta_model")

    @classmethod
    def encoder_model(cls, section: BackboneSection, options: Any, *, device: torch.device) -> Backbone:
        """Build the model for its embeddings alone: `encode`, `unconditional`, `encoder_identity` and the checks of
        prompts and sizes equal those of the whole model; nothing else is called, so that it needs no denoiser.

        Used by `dgpo cache fill`. By default the whole model.
        """
        return cls(section, options, device=device)

    def components(self) -> Mapping[str, torch.nn.Module]:
        """Return all modules with weights that stay on the device, by display name. By default only `module`.

        A backbone with a `meta_model` also lists its text encoders and its decoder; they must run on the meta device
        too.
        """
        return {"model": self.module}

    def weight_bytes(self, weight: torch.Tensor) -> int:
        """Return the bytes that one of the weights of `components` takes on a device, for `dgpo plan`.

        By default those of its elements. A meta model whose weights are to be quantized returns fewer.
        """
        return weight.numel() * weight.element_size()

    def loaded_weights(self) -> Mapping[str, str]:
        """Describe the weights that were read, by component: how many tensors, and which were left unused.

        Shown by `dgpo train --dry-run`. By default empty.
        """
        return {}

    def blocks(self) -> Sequence[torch.nn.Module]:
        """Return the blocks of `module` that run in sequence, each called once per forward pass.

        With `run.shard`, the full weights of one block at a time are gathered. By default the children of the outermost
        ModuleLists of `module`.
        """
        return list(_members_of_lists(self.module))

    def offloaded_modules(self) -> Mapping[str, torch.nn.Module]:
        """Return the modules that are on the device only during `encoding`, by display name. By default none."""
        return {}

    def offloaded_bytes(self) -> tuple[int, int]:
        """Return the bytes that `offloaded_modules` take on the device all the time, and those that they take in
        addition during `encoding`, for `dgpo plan`. By default 0, and all of their weights."""
        modules = self.offloaded_modules().values()
        return 0, sum(self.weight_bytes(weight) for module in modules for weight in module.parameters())

    def encoding(self) -> AbstractContextManager[None]:
        """Return a context manager entered around calls of `encode`, to move text encoders to the device and back."""
        return nullcontext()

    def sampling(self) -> AbstractContextManager[None] | None:
        """Return a context manager in which predictions may be approximate, for faster rollouts; None if it has none.

        Entered anew for each micro-batch of a training rollout, around all of its steps, and never for losses, step
        probabilities, evaluations or other samples. Predictions may depend on earlier passes within the context, but
        must not depend on the other rows of the batch. The number of rows can change between steps.
        """
        return None


def _members_of_lists(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    from torch.nn import ModuleList

    for child in module.children():
        yield from child if isinstance(child, ModuleList) else _members_of_lists(child)
