"""What plugins implement. Every class here is a part that a run file can choose by name.

Light on purpose: importing this module does not import torch. Tensors follow `types` (its legend of letters).
Every part is built once per run, by the keywords in its `__init__` here; `options` is an instance of the model
that the plugin declared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dgpo_core.types import Conditioning, Example, Predictions, Prompt, SampleResult, Scores

if TYPE_CHECKING:
    from pathlib import Path as FilePath

    import torch
    from torch import Tensor

    from dgpo_core.draws import Draws
    from dgpo_schemas.run import BackboneSection, ObjectiveSection, RunConfig

__all__ = [
    "AdvantageWeighting",
    "Backbone",
    "MemberLoss",
    "Objective",
    "Probe",
    "PromptSource",
    "RewardModel",
    "Sampler",
    "TimestepContext",
    "TimestepPolicy",
    "VelocityFn",
]

VelocityFn = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x_sigma [B, ...], sigma 0-d tensor in [0, 1]) -> velocity [B, ...] = d x / d sigma, an estimate of noise - x0."""


class Backbone(ABC):
    """A diffusion or flow model: text in, velocity, media out."""

    media: ClassVar[Literal["image", "video"]] = "image"
    """What `decode` gives. A run with a reward that does not score it is refused before the first sample."""
    formats: ClassVar[tuple[str, ...]] = ()
    """What `save_adapter_as` can write (`dgpo export --format`), first the format that `save_adapter` writes. Empty:
    that one alone, which needs no name."""

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

    @abstractmethod
    def trainable(self) -> Mapping[str, torch.nn.Parameter]:
        """The trained parameters by stable names, float32: the adapter's, or all of them."""

    @abstractmethod
    def without_adapter(self) -> AbstractContextManager[None] | None:
        """A context in which `velocity` runs the base weights; None when every weight is trained (the engine then
        keeps its own copy of the base)."""

    def merged(self) -> AbstractContextManager[None] | None:
        """A context in which the adapter as it is now is added into the base weights, which are bit for bit as before
        afterwards: `velocity` then costs what the base costs. None, the default, if that cannot be done."""
        return None

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Prompts to conditioning, one row each, on the device, without gradient. Every prompt has a size.

        Rows are independent of each other, so that the engine may cache and regroup them. They have one shape, or
        tensors whose rows differ in length say so (`Conditioning.lengths`). A row depends on nothing but `Prompt.key`.
        """

    @property
    def guidable(self) -> bool:
        """Whether there is an unconditional prediction to guide away from. Models that were distilled without one say
        False: guidance is then 1 wherever they run."""
        return True

    def unconditional(self, prompts: Sequence[Prompt]) -> Conditioning:
        """What guidance leads away from, one row for each of these prompts, with the promises of `encode`: by default
        the conditioning of the negative text, or of "". Media and size stay, the text itself is not looked at.

        A row depends on nothing but the negative text, the media and the size. Only asked of models that are
        `guidable`.
        """
        return self.encode([replace(prompt, text=prompt.negative or "") for prompt in prompts])

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Two velocities [B, ...] at x_sigma [B, ...] and sigma [B] to the guided one [B, ...], for a scale that is not
        1. By default classifier-free guidance v_u + s * (v_c - v_u) (Ho and Salimans, arXiv 2207.12598)."""
        return unconditional + guidance * (conditional - unconditional)

    def example(self, size: tuple[int, int]) -> Prompt:
        """A prompt that the model can draw, where any will do: by default one without text. Models that need media give
        one that has them."""
        return Prompt("", size=size)

    def bucket(self, prompt: Prompt) -> Hashable:
        """Samples of one bucket may share a micro-batch: their latents and conditioning have one shape. By default
        those of one size."""
        return prompt.size

    def unread(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        """Which prompts' texts no text encoder reads to their end, by their places, and how many tokens are read at
        most. Users are told of them before the run. By default none."""
        return (), 0

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of one latent for media of this size in pixels. Raises UserError naming the nearest possible size."""

    @abstractmethod
    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Estimate of noise - x0 at x_sigma = (1 - sigma) * x0 + sigma * noise.

        x_sigma float32 [B, ...]; sigma float32 [B] in [0, 1]; returns float32 [B, ...].
        """

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B, ...] to media: images [B, 3, H, W] or video [B, F, 3, H, W], float32 in [0, 1], no gradient.
        In chunks, so that any B fits."""

    @abstractmethod
    def save_adapter(self, directory: FilePath) -> None:
        """Write the current trained weights in the format that the ecosystem loads.

        Programs that know nothing of an adapter's alpha must apply its whole strength: fold the scale into a matrix.
        """

    def save_adapter_as(self, format: str, directory: FilePath) -> None:
        """The same in one of `formats`, which are those of adapters: with `train: full` only the first is asked for."""
        raise NotImplementedError(f"{type(self).__name__} declares formats but has no `save_adapter_as`")

    def base_directory(self) -> FilePath | None:
        """Where the base weights were read from. Runs keep digests of what lies there, and notice another base when
        they go on. By default `backbone.checkpoint`, if that is a directory; None: nothing is known, nothing is
        compared."""
        from pathlib import Path

        place = Path(self.section.checkpoint)
        return place if place.is_dir() else None

    @classmethod
    def sketch(cls, section: BackboneSection, options: Any) -> Backbone:
        """The same model on torch's meta device, known from configuration files or by its name: shapes, types and
        operations, no weights. `encode` gives rows of the right shape. Optional: `dgpo plan` asks for it.

        Raises UserError for a checkpoint whose looks are not known.
        """
        raise NotImplementedError(f"{cls.__name__} does not say what it looks like without its weights")

    def parts(self) -> Mapping[str, torch.nn.Module]:
        """Everything that stays on the device, by names for people. By default the module alone."""
        return {"model": self.module}

    def blocks(self) -> Sequence[torch.nn.Module]:
        """The parts of `module` that run one after the other, each called once a pass: with `run.shard` the weights of
        one of them at a time are gathered. By default the members of its outermost ModuleLists."""
        return list(_members_of_lists(self.module))

    def visitors(self) -> Mapping[str, torch.nn.Module]:
        """What comes to the device only for `encoding`. By default nothing."""
        return {}

    def encoding(self) -> AbstractContextManager[None]:
        """Entered around calls of `encode`: a place to bring text encoders to the device. By default nothing."""
        return nullcontext()


def _members_of_lists(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    from torch.nn import ModuleList

    for child in module.children():
        yield from child if isinstance(child, ModuleList) else _members_of_lists(child)


class Sampler(ABC):
    """Solves the flow from noise (sigma = 1) to data (sigma = 0)."""

    deterministic: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def sigmas(self, steps: int, shift: float) -> Tensor:
        """Times visited: float64 [steps + 1] on the CPU, descending, the last 0."""

    @abstractmethod
    def sample(
        self,
        velocity: VelocityFn,
        noise: Tensor,
        *,
        steps: int,
        shift: float,
        draws: Sequence[Draws] = (),
        keep_path: bool = False,
    ) -> SampleResult:
        """From noise [B, ...] to x0. `draws`, one key per sample, feeds samplers that are not deterministic."""

    def step_distribution(self, x: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> tuple[Tensor, float]:
        """(mean [B, ...], std) of the Gaussian from which the state at next_sigma is drawn, given x [B, ...] at sigma.

        Differentiable in the velocity [B, ...]. std is 0 for a step that is not random. Optional: only objectives that
        need the path want it, of a sampler that is not deterministic and draws its steps from just this.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how its steps are distributed")


class RewardModel(ABC):
    """Scores media. Called from a thread of the run while the next samples are drawn; from several at once only where
    `concurrency` allows it. Leaves the process as it was: working directory, torch's defaults and switches, signals."""

    media: ClassVar[frozenset[Literal["image", "video"]]] = frozenset({"image"})
    range: ClassVar[tuple[float, float]]
    """Smallest and largest value it can give; infinities where there is no bound."""
    group_by: ClassVar[str | None] = None
    """Metadata key by which evaluation splits its table (GenEval: `tag`); the overall score is then the unweighted
    mean of the groups' means."""
    concurrency: int = 1
    """Calls of `score` that may run at the same time."""
    elsewhere: ClassVar[bool] = False
    """Whether the scores are computed outside of this process: what is done there changes nothing here."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        self.options = options
        self.device = device

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 - optional
        """Raise UserError, naming the prompt, if one lacks what this reward needs. Called before the run starts."""

    @abstractmethod
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Media [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1], with the prompt of each, to one value per sample.
        A sample's value does not depend on the others in the batch. What cannot be scored is missing, never 0. May
        raise anything: the batch is then missing, or, where memory ran out, scored again in halves."""

    def examples(self) -> Sequence[Example]:
        """Samples known to be good and bad, shipped or drawn: `dgpo score --self-test` and the contract suite score
        them. At least one of each, or none at all."""
        return ()

    def close(self) -> None:  # noqa: B027 - optional
        """Let go of what garbage collection would not: processes, connections, pools. Called once, at the end."""


class AdvantageWeighting(ABC):
    """How strongly each member of a group counts."""

    cancels_partition: ClassVar[bool] = False
    """Whether sum_i sign(A_i) * w_i = 0 in every group, so that the partition function cancels exactly."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        """Advantages and rewards, float64 [G] of one group's scored members, to weights >= 0 [G]."""


@dataclass(frozen=True, slots=True)
class TimestepContext:
    """What a timestep policy may look at: sigmas float64 [steps + 1] of the rollout, the range, and progress.

    deterministic: whether the rollouts' sampler is, so that samples in few steps and in many can be compared.
    """

    sigmas: Tensor
    t_min: float
    t_max: float
    shift: float
    iteration: int
    iterations: int
    deterministic: bool = True


class Probe(ABC):
    """The model as it is now, for timestep policies that measure it.

    Always the same training prompts and noise, so that what changes between two measurements is the model. Every call
    costs passes of it.
    """

    @abstractmethod
    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        """x0 [count, ...] as rollouts are drawn now, in `refine` times as many steps; sample i has the same noise
        whatever `refine` is."""

    @abstractmethod
    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Denoising errors (dsm) of the policy and of the base model, float64 [T, B] on the CPU, of the first B samples
        at times [T] > 0; without guidance, as they are trained. Sample i has one noise for every time and x0."""


class TimestepPolicy(ABC):
    """Chooses the times at which the loss is taken. May learn from what happened; its state is checkpointed."""

    measures: ClassVar[bool] = False
    """Whether `measure` is called, before each iteration's rollouts."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def check(self, context: TimestepContext, count: int) -> None:  # noqa: B027 - optional
        """Raise UserError if `count` times cannot be drawn. Called before the run starts."""

    def measure(self, probe: Probe, context: TimestepContext) -> None:  # noqa: B027 - optional
        """Look at the model; what it finds belongs to the state. Only called where `measures` is set."""

    def bounds(self, context: TimestepContext) -> tuple[float, float]:
        """Smallest and largest time that `draw` would give now, within [t_min, t_max]; shown in metrics and reports."""
        return context.t_min, context.t_max

    def metrics(self) -> Mapping[str, float]:
        """What is worth a line in the log beside the bounds."""
        return {}

    @abstractmethod
    def draw(self, count: int, context: TimestepContext, draws: Draws) -> Tensor:
        """`count` times, float64 [count] on the CPU, within the bounds."""

    def observe(self, metrics: Mapping[str, float]) -> None:  # noqa: B027 - optional
        """Called after each iteration with its metrics."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state for the checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - optional
        """Restore what `state_dict` returned."""


@dataclass(frozen=True, slots=True)
class MemberLoss:
    """Loss [B] per member, with gradient, and named per-member values [B] to be averaged into the metrics."""

    loss: Tensor
    metrics: Mapping[str, Tensor]


class Objective(ABC):
    """A loss over members of groups.

    The engine guarantees exact group statistics: it adds up `statistic` over every member of a group, however the
    group was split, before it asks for any member's `loss`. The step's loss is the mean over all groups and timesteps
    of the mean of `loss` over a group's scored members.
    """

    needs_path: ClassVar[bool] = False
    """Whether it learns from the steps that the sampler took (`Predictions.step`). The training times are then times of
    the sampler's random steps, and every model's prediction has the rollouts' guidance."""
    needs_statistic: ClassVar[bool] = False

    def __init__(self, section: ObjectiveSection, options: Any) -> None:
        self.section = section
        self.options = options

    @property
    @abstractmethod
    def needs_reference(self) -> bool:
        """Whether `Predictions.reference` must be given: what a preference is relative to, `objective.reference`."""

    @property
    def needs_base(self) -> bool:
        """Whether `Predictions.base` must be given: what a KL term compares with, always the frozen base model."""
        return False

    @property
    @abstractmethod
    def needs_old(self) -> bool:
        """Whether `Predictions.old` must be given."""

    @property
    @abstractmethod
    def skips_zero_weights(self) -> bool:
        """Whether a member with signed weight 0 contributes exactly nothing, so that its passes may be skipped."""

    def check(self, run: RunConfig) -> None:  # noqa: B027 - optional
        """Raise UserError for settings of the run that do not go with this objective. Called before the run starts."""

    def statistic(self, predictions: Predictions) -> Tensor:
        """Each member's share [B] of its group's statistic, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} declares needs_statistic but has no `statistic`")

    @abstractmethod
    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss per member; `statistic` [B] is the complete sum over the member's group (None if not needed)."""


class PromptSource(ABC):
    """Generates prompts."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        """The prompts of one split, always the same ones for the same options; the two splits share none."""
