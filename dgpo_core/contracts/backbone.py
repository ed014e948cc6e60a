"""The contract of backbones: diffusion and flow models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
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
    "checkpoint", "revision", "train: lora", "train: full", "lora.rank", "lora.alpha", "lora.targets", "dtype",
    "gradient_checkpointing", "compile",
})  # fmt: skip
"""What a run file may say of any backbone, beside its own `options`: keys of `BackboneSection`, and the two values of
`train` apart."""


class Backbone(ABC):
    """A diffusion or flow model: prompts in, velocity, media out."""

    media: ClassVar[Literal["image", "video"]] = "image"
    """What `decode` gives. A run with a reward that does not score it is refused before the first sample."""
    fps: float | None = None
    """Frames a second of its videos, as it was trained on; None for images. Rewards are told (`Prompt.fps`). A property
    where the checkpoint decides."""
    adapter: Adapter | None = None
    """What is trained with `train: lora`: set when the model is built, `self.adapter = LoraAdapter(...)`. None with
    `train: full`, and where a model offers no other way: every weight is trained, and the engine keeps its own copy of
    the base. A run with `train: lora` whose model has no adapter is refused."""

    uses: ClassVar[frozenset[str]] = SECTION_KEYS
    """What the class does with its section, by default everything. A class that has no use for some of it says so:
    `uses = Backbone.uses - {"compile", "train: lora"}`. A run file that sets what is not used is refused before
    anything is loaded. What is used is promised, and checked by `dgpo plugins check` where it can be seen: frozen
    weights are of `dtype`, trained ones float32; `gradient_checkpointing` computes the same gradients from activations
    that are computed again; `checkpoint` is looked up by `dgpo_core.weights.resolve_checkpoint`, which knows
    `package:NAME/path`."""

    def __init__(self, section: BackboneSection, options: Any, *, device: torch.device) -> None:
        """Load the checkpoint that `section` names, ready to train on `device`.

        Raises UserError for a checkpoint that is missing or of another architecture, and for a LoRA whose targets
        match no module (naming the candidates).
        """
        self.section = section
        self.options = options
        self.device = device

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The network whose forward pass `velocity` runs, adapter included."""

    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """The trained parameters by stable names, float32. By default the adapter's; without one, those of `module`
        that require a gradient."""
        if self.adapter is not None:
            return self.adapter.parameters()
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Prompts to conditioning, one row each, on the device, without gradient. Every prompt has a size.

        Rows are independent of each other, so that the engine may cache and regroup them. They have one shape, or
        tensors whose rows differ in length say so (`Conditioning.lengths`). A row depends on nothing but `Prompt.key`.
        """

    @property
    def supports_guidance(self) -> bool:
        """Whether there is an unconditional prediction to guide away from. Models that were distilled without one say
        False: guidance is then 1 wherever they run."""
        return True

    def unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """What guidance leads away from, one row for each of these prompts, with the promises of `encode`: by default
        the conditioning of the negative text, or of "". Media and size stay, the text itself is not looked at.

        A row depends on nothing but the negative text, the media and the size. Only asked of models that are
        `supports_guidance`.
        """
        return self.encode([replace(prompt, text=prompt.negative or "") for prompt in prompts])

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Two velocities [B, ...] at x_sigma [B, ...] and sigma [B] to the guided one [B, ...], for a scale that is not
        1. By default classifier-free guidance v_u + s * (v_c - v_u) (Ho and Salimans, arXiv 2207.12598)."""
        return unconditional + guidance * (conditional - unconditional)

    def schedule(self, height: int, width: int, steps: int) -> Schedule:
        """How the times of samples of this size in pixels are spaced in so many steps: the model's own grid and shift.
        A run file may set another shift. By default unshifted."""
        return Schedule()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest time at which `velocity` may be asked: 0 <= low < high <= 1, all of them by
        default. Samplers' final 0 is exempt. A run whose samples or training would need other times is refused before
        the first sample; without `timesteps.t_max` its training goes up to the highest."""
        return 0.0, 1.0

    def start(self, sigma: float) -> float:
        """The scale of standard normal noise as a state at sigma, the first time of a schedule: samples begin at
        `start(sigma) * noise`. 1 for models whose schedules begin at 1, and by default; a variance-preserving model,
        whose noise has variance 1 in its own coordinates, says sqrt((1 - sigma)^2 + sigma^2)."""
        return 1.0

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """Factor [B] of squared errors of the velocity at sigma [B], on its device: what makes them the error in which
        the model was trained, such as (1 - sigma)^2 of a model that predicts the noise. The engine hands it to
        objectives as `Predictions.loss_weight`. None, the default, is 1 at every time."""
        return None

    def example(self, size: tuple[int, int]) -> Prompt:
        """A prompt that the model can draw, where any will do: by default one without text. Models that need media give
        one that has them."""
        return Prompt("", size=size)

    def bucket(self, prompt: Prompt) -> Hashable:
        """Samples of one size and bucket may share a micro-batch: their latents and conditioning have one shape. By
        default all of one size. Where the rows of a size can differ in shape (with the number of media, say), what they
        differ in."""
        return prompt.size

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, naming the prompt, if the model cannot be conditioned on one. Called when a run is built, of
        all its prompts. By default those that have media are refused: a model that takes some says here how many, of
        which kind and in which sizes (they have been looked at, and can be read)."""
        for prompt in prompts:
            if prompt.media:
                path = f" ({clean(prompt.media[0].path, 300)})" if prompt.media[0].path else ""
                raise UserError(
                    f"{f'{prompt.origin}: ' if prompt.origin else ''}the prompt has media{path}, but the backbone "
                    f"{self.section.use} takes text alone: leave `media` out, or choose a model that edits or animates"
                )

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Which prompts' texts no text encoder reads to their end, by their places, and how many tokens are read at
        most. Users are told of them before the run. By default none."""
        return (), 0

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for media of this size in pixels. Raises UserError naming the nearest possible size,
        which begins with `rollout.resolution: `; for a prompt's own size the engine names the prompt instead."""

    @abstractmethod
    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Estimate of noise - x0 at x_sigma = (1 - sigma) * x0 + sigma * noise.

        x_sigma float32 [B, ...]; sigma float32 [B] in `sigma_range`; returns float32 [B, ...].
        """

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B, ...] to media: images [B, 3, H, W] or video [B, F, 3, H, W], float32 in [0, 1], no gradient.
        In chunks, so that any B fits."""

    def save_weights(self, directory: FilePath) -> None:
        """With `train: full`: write the trained weights as they are now into a directory, which may be new, in the
        format that the ecosystem loads. By default `weights.safetensors`, by the names of `trainable`."""
        import safetensors.torch

        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: p.detach().cpu().clone().contiguous() for name, p in self.trainable().items()}
        safetensors.torch.save_file(weights, directory / "weights.safetensors", {"format": "pt"})

    def base_directory(self) -> FilePath | None:
        """Where the base weights were read from. Runs keep digests of what lies there, and notice another base when
        they go on. By default `backbone.checkpoint`, if that is a directory; None: nothing is known, nothing is
        compared."""
        from pathlib import Path

        place = Path(self.section.checkpoint)
        return place if place.is_dir() else None

    @classmethod
    def meta_model(cls, section: BackboneSection, options: Any) -> Backbone:
        """The same model on torch's meta device, known from configuration files or by its name: shapes, types and
        operations, no weights. `encode` gives rows of the right shape. Optional: `dgpo plan` asks for it.

        Raises UserError for a checkpoint whose looks are not known.
        """
        raise NotImplementedError(f"{cls.__name__} does not say what it looks like without its weights")

    def components(self) -> Mapping[str, torch.nn.Module]:
        """Everything that has weights and stays on the device, by names for people. By default the module alone; a
        model with a `meta_model` names its text encoders and its decoder too, which run there as well."""
        return {"model": self.module}

    def blocks(self) -> Sequence[torch.nn.Module]:
        """The parts of `module` that run one after the other, each called once a pass: with `run.shard` the weights of
        one of them at a time are gathered. By default the members of its outermost ModuleLists."""
        return list(_members_of_lists(self.module))

    def offloaded_modules(self) -> Mapping[str, torch.nn.Module]:
        """What comes to the device only for `encoding`. By default nothing."""
        return {}

    def encoding(self) -> AbstractContextManager[None]:
        """Entered around calls of `encode`: a place to bring text encoders to the device. By default nothing."""
        return nullcontext()


def _members_of_lists(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    from torch.nn import ModuleList

    for child in module.children():
        yield from child if isinstance(child, ModuleList) else _members_of_lists(child)
