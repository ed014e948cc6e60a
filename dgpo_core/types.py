"""What flows through a run, one frozen dataclass per stage.

Legend of shape letters: g groups, G members of a group, B = samples in a batch, C H W latent or image,
F frames, T training timesteps. Flow-matching time sigma in [0, 1]: 1 is noise, 0 is data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "ConditionMedium",
    "Conditioning",
    "Example",
    "Path",
    "PathStep",
    "Predictions",
    "Prompt",
    "Rollout",
    "SampleKey",
    "SampleResult",
    "Schedule",
    "ScoredGroups",
    "Scores",
    "TrainingBatch",
    "mean_square",
    "same_places",
    "weighted",
]


SampleKey = tuple[int | str, ...]
"""Names a sample: the key that its noise is drawn from (`draws.Draws.key`)."""


@dataclass(frozen=True, slots=True)
class ConditionMedium:
    """An image or video that a sample is conditioned on, such as the one to edit.

    digest: SHA-256 of the file's bytes, as hexadecimal digits, by which two of them are the same.
    path: where it lies, or lay on the machine that it comes from; content: its bytes, where it is not read from there;
    pixels: what it shows (`pixels.Pixels`), where that is known already; reader: what `read` calls with it. One that
    can be read is made by `dgpo_core.media.conditions.condition_medium`.
    """

    kind: Literal["image", "video"]
    digest: str
    path: str = field(default="", compare=False)
    content: bytes | None = field(default=None, compare=False, repr=False)
    pixels: Any = field(default=None, compare=False, repr=False)
    reader: Callable[[ConditionMedium], Tensor] | None = field(default=None, compare=False, repr=False)

    def read(self) -> Tensor:
        """What it shows, float32 in [0, 1], RGB, on the CPU: [3, H, W] of an image, [F, 3, H, W] of a video; read and
        decoded anew at every call.

        Raises UserError, naming the file, if it is not there any more or has other bytes than its digest says.
        """
        if self.reader is None:
            raise UserError(f"{self.path or self.digest}: was made without a reader; condition_medium gives it one")
        return self.reader(self)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: what a sample is drawn from, and what rewards need to know of it (GenEval's clauses, OCR's target).

    origin: `file:line` where it was read, for messages; no part of what the prompt is.
    negative: the text that guidance leads away from; None is what the model takes by default.
    media: what the sample is conditioned on beside the text, in the order in which the model is shown them.
    size: (height, width) of its samples in pixels; None is the run's. The engine fills it in: what a backbone or a
    reward is given has a size.
    source: the name of the list of prompts that it belongs to, empty where the run has one list.
    fps: frames a second of its samples, for rewards; None for images, and until the engine fills it in.
    """

    text: str
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    origin: str = field(default="", compare=False)
    negative: str | None = None
    media: tuple[ConditionMedium, ...] = ()
    size: tuple[int, int] | None = None
    source: str = ""
    fps: float | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str, tuple[str, ...], tuple[int, int] | None]:
        """What its conditioning depends on: text, digests of the media, size."""
        return self.text, tuple(medium.digest for medium in self.media), self.size

    def sized(self, size: tuple[int, int], fps: float | None = None) -> Prompt:
        """The same, with this size and these frames a second unless it has its own."""
        size = size if self.size is None else self.size
        fps = fps if self.fps is None else self.fps
        return self if (size, fps) == (self.size, self.fps) else replace(self, size=size, fps=fps)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a backbone made of prompts: named tensors, each with the batch as its first dimension.

    The engine treats it as opaque: it caches one row per prompt, gathers rows and joins batches.

    lengths: names of tensors [B, L, ...] whose rows differ in length, with the length of each row; beyond it a row is
    filled with zeros, up to the longest of them. They are numbers on the host, so that nothing waits for the device. A
    model that has to know which places are filled keeps a mask among the tensors, True in every place of a row.
    """

    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def rows(self, index: Sequence[int] | slice) -> Conditioning:
        """The given rows, as long as the longest of them."""
        if not isinstance(index, slice):
            import torch

            places = torch.tensor(index, device=next(iter(self.tensors.values())).device)
            return self._trimmed(
                {name: tensor[places] for name, tensor in self.tensors.items()},
                {name: tuple(lengths[i] for i in index) for name, lengths in self.lengths.items()},
            )
        return self._trimmed(
            {name: tensor[index] for name, tensor in self.tensors.items()},
            {name: lengths[index] for name, lengths in self.lengths.items()},
        )

    @staticmethod
    def _trimmed(tensors: dict[str, Tensor], lengths: dict[str, tuple[int, ...]]) -> Conditioning:
        return Conditioning(
            {name: t[:, : max(lengths[name], default=0)] if name in lengths else t for name, t in tensors.items()},
            lengths,
        )

    def expand(self, count: int) -> Conditioning:
        """A single row seen `count` times (no copy)."""
        return Conditioning(
            {n: t.expand(count, *t.shape[1:]) for n, t in self.tensors.items()},
            {n: lengths * count for n, lengths in self.lengths.items()},
        )

    def to(self, device: torch.device) -> Conditioning:
        """The same on a device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.lengths)

    @staticmethod
    def cat(components: Sequence[Conditioning]) -> Conditioning:
        """Several batches as one; rows that differ in length are filled up to the longest."""
        if len(components) == 1:
            return components[0]
        import torch

        first = components[0]
        assert all(part.tensors.keys() == first.tensors.keys() for part in components), "rows of one model"
        joined = {}
        for name in first.tensors:
            tensors = [part.tensors[name] for part in components]
            longest = max(t.shape[1] for t in tensors) if name in first.lengths else 0
            joined[name] = torch.cat([_filled(t, longest) if name in first.lengths else t for t in tensors])
        return Conditioning(
            joined, {n: tuple(i for part in components for i in part.lengths[n]) for n in first.lengths}
        )


def same_places(row: Conditioning, other: Conditioning) -> str | None:
    """What keeps two batches of conditioning from being joined, in words: other tensors, `lengths`, shapes or dtypes.
    None if they fit."""
    if row.tensors.keys() != other.tensors.keys():
        return f"one prompt has the tensors {', '.join(row.tensors)}, another {', '.join(other.tensors)}"
    if row.lengths.keys() != other.lengths.keys():
        return f"one prompt has lengths of {', '.join(row.lengths) or 'no tensor'}, another of " + (
            ", ".join(other.lengths) or "no tensor"
        )
    for name, tensor in row.tensors.items():
        skipped = 2 if name in row.lengths else 1
        mine, theirs = tensor.shape[skipped:], other.tensors[name].shape[skipped:]
        if mine != theirs or tensor.dim() != other.tensors[name].dim():
            return (
                f"{name} of one prompt is {tuple(tensor.shape)}, of another in its bucket "
                f"{tuple(other.tensors[name].shape)}: rows that differ in length say so in `Conditioning.lengths`"
            )
        if tensor.dtype != other.tensors[name].dtype:
            return f"{name} of one prompt is {tensor.dtype}, of another {other.tensors[name].dtype}"
    return None


def _filled(tensor: Tensor, length: int) -> Tensor:
    """[B, L, ...] with zeros up to [B, length, ...]."""
    missing = length - tensor.shape[1]
    if not missing:
        return tensor
    import torch

    return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], 1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """How a model wants the times of its samples spaced. A sampler's times are a grid that descends from `first`, then
    shifted, then stretched to `terminal`, then a final 0 (`dgpo_core.flow.schedules`).

    shift k > 0: sigma becomes k * sigma / (1 + (k - 1) * sigma).
    grid: "even" goes in even steps from `first` down to first / steps; "scheduler" from `first` down to 1/1000 shifted,
    which is then shifted again with the others: diffusers' FlowMatchEulerDiscreteScheduler where a pipeline gives it no
    times; a tuple holds exactly the times of the asked number of steps, not shifted yet, descending, its first `first`.
    Samplers with a grid of their own start it no higher than `first`.
    terminal: the last time before 0, in (0, 1), to which all are stretched away from 1; None leaves them.
    first: the highest time of the grid, in (0, 1]. Noise is the state there, times `Backbone.start`.
    """

    shift: float = 1.0
    grid: Literal["even", "scheduler"] | tuple[float, ...] = "scheduler"
    terminal: float | None = None
    first: float = 1.0


@dataclass(frozen=True, slots=True)
class Path:
    """The states a sampler went through, kept only for objectives that ask.

    states [steps+1, B, C, H, W] from noise to data; sigmas [steps+1]; log_probs [steps, B] (mean over
    non-batch dims) or None for a deterministic sampler.
    """

    states: Tensor
    sigmas: Tensor
    log_probs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What a sampler returns: x0 [B, C, H, W] clean latents, and the path if it was asked for."""

    x0: Tensor
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One micro-batch of samples, all of one size; samples: their B numbers in the iteration's flat, group-major
    order."""

    samples: Sequence[int]
    prompts: tuple[Prompt, ...]
    x0: Tensor
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """What a reward model returns for B samples.

    values float32 [B], higher is better; missing bool [B], True where the sample could not be scored (its value
    is then ignored); diagnostics, one mapping of JSON-able values per sample, or empty: any keys, of which `reason`,
    `marks` and `clauses` have the meaning that `dgpo_schemas.diagnostics` gives them.
    """

    values: Tensor
    missing: Tensor
    diagnostics: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A sample that a reward must be able to tell good from bad: media [3, H, W] or [F, 3, H, W], float in [0, 1].

    The best of a reward's bad examples must score below the worst of its good ones.
    """

    name: str
    prompt: Prompt
    media: Tensor
    good: bool


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """An iteration's samples with their rewards; statistics are on the CPU, latents stay on the device.

    x0: n latents [C, H, W], whose sizes may differ from group to group, and paths of the n samples `own`, which are the
    numbers of this process's samples in the flat, group-major order: all g * G of them if it is the only one. All else
    is of all samples, whoever drew them.
    rewards float64 [g, G], all rewards as one, which is what the advantages are made of; summed float64 [g, G],
    their weighted sum, for people to read (nan where not scored; the same unless each reward is normalized first);
    scored bool [g, G]; per_reward: label to float64 [g, G] (nan where missing); subscores: label to name to float64
    [g * G], what each is made of (nan where missing); asked: label to bool [g], whether the group's source asks for the
    reward (all do where there is none of the label); diversity [g]: mean pairwise
    distance of the members' media; statistics: name to float64 [g, G], of the media (`monitors.media_statistics`).
    """

    prompts: tuple[Prompt, ...]
    x0: Sequence[Tensor]
    own: Sequence[int]
    rewards: Tensor
    summed: Tensor
    scored: Tensor
    per_reward: Mapping[str, Tensor]
    diversity: Tensor
    statistics: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    paths: tuple[Path, ...] = ()
    subscores: Mapping[str, Mapping[str, Tensor]] = field(default_factory=lambda: MappingProxyType({}))
    asked: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Groups with their signed weights c_i = sign(A_i) * w_i, ready for the objective.

    x0: n latents [C, H, W] on the device, of the n samples `own` (`ScoredGroups`), and paths likewise; advantages,
    signed_weights float64 [g, G] on the CPU (0 where not scored); scored bool [g, G]; residual [g] = |sum_i c_i|: 0
    where the partition function cancels.
    """

    prompts: tuple[Prompt, ...]
    x0: Sequence[Tensor]
    own: Sequence[int]
    advantages: Tensor
    signed_weights: Tensor
    scored: Tensor
    residual: Tensor
    paths: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class PathStep:
    """A random step that the sampler took, x at sigma to next_x at next_sigma, for B members.

    x, next_x [B, ...]; log_prob [B] under the weights that drew it (mean over non-batch dims); distribution: a velocity
    [B, ...] at x to (mean [B, ...], std) of next_x, by the sampler itself, so that the loss cannot disagree with it.
    """

    x: Tensor
    next_x: Tensor
    sigma: float
    next_sigma: float
    log_prob: Tensor
    distribution: Callable[[Tensor], tuple[Tensor, float]]


@dataclass(frozen=True, slots=True)
class Predictions:
    """What an objective sees of B members at one timestep.

    velocity [B, ...] the policy's prediction at x_sigma (with gradient); target [B, ...] = (x_sigma - x0) / sigma, that
    is noise - x0 where x_sigma is a noised x0; reference, base and old [B, ...] or None: predictions of
    `objective.reference`, of the frozen base model (both guided by `objective.kl_cfg` where they are the base's) and of
    the fast EMA; sigma [B]; advantages, signed_weights [B]; group_size [B]: scored members of its group; step: for
    objectives with `needs_path`, whose x_sigma is the state of the path at sigma. What the objective does not need may
    be there if it cost nothing. loss_weight [B]: factor of squared errors of velocities (`Backbone.loss_weight`); None
    is 1. `error` applies it, and log-densities of a path have nothing to do with it.
    """

    velocity: Tensor
    target: Tensor
    sigma: Tensor
    advantages: Tensor
    signed_weights: Tensor
    group_size: Tensor
    reference: Tensor | None = None
    base: Tensor | None = None
    old: Tensor | None = None
    step: PathStep | None = None
    loss_weight: Tensor | None = None

    def error(self, one: Tensor, other: Tensor) -> Tensor:
        """The squared error [B] of two velocities [B, ...] that every loss is made of: the mean over all but the batch
        dimension, in float32 at least, times `loss_weight`. With gradient."""
        return weighted(mean_square(one - other), self.loss_weight)


def mean_square(difference: Tensor) -> Tensor:
    """Mean over all but the batch dimension, in float32 at least: [B, ...] -> [B]."""
    import torch

    if difference.dtype in (torch.float16, torch.bfloat16):
        difference = difference.float()
    return difference.square().flatten(1).mean(1)


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Values [B] times the weight [B]; None is 1, and leaves every bit."""
    return values if weight is None else weight * values
