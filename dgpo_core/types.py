"""Data types passed between the stages of a run, as frozen dataclasses.

Shape letters: g groups, G members per group, B samples in a batch, C H W latent or image dimensions, F frames,
T training timesteps. Flow-matching time sigma in [0, 1]: 1 is noise, 0 is data.
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
    "Candidates",
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
"""Identifies a sample: the key from which its noise is drawn (`draws.Draws.key`)."""


@dataclass(frozen=True, slots=True)
class ConditionMedium:
    """An image or video that a sample is conditioned on, such as the image to edit.

    Construct one with `dgpo_core.media.conditions.condition_medium`, which sets the reader.

    digest: SHA-256 of the file's bytes in hexadecimal; determines equality.
    path: path of the file, on this machine or on the one it was sent from.
    content: bytes of the file, if it is not read from `path`.
    pixels: decoded content (`media.pixels.Pixels`), if already decoded.
    reader: function that `read` calls with this object.
    """

    kind: Literal["image", "video"]
    digest: str
    path: str = field(default="", compare=False)
    content: bytes | None = field(default=None, compare=False, repr=False)
    pixels: Any = field(default=None, compare=False, repr=False)
    reader: Callable[[ConditionMedium], Tensor] | None = field(default=None, compare=False, repr=False)

    def read(self) -> Tensor:
        """Read and decode the medium: image [3, H, W] or video [F, 3, H, W], RGB, float32 in [0, 1], on the CPU.

        Results are not cached. Raises UserError, naming the file, if it no longer exists or no longer matches `digest`.
        """
        if self.reader is None:
            raise UserError(f"{self.path or self.digest}: has no reader; construct it with condition_medium")
        return self.reader(self)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt: the conditioning of a sample, and metadata for rewards.

    text: the prompt text.
    metadata: data that rewards need, such as GenEval's clauses or OCR's target text.
    origin: `file:line` that the prompt was read from, for messages; ignored in comparisons.
    negative: the negative prompt; None is the model's default.
    media: conditioning images and videos, in the order in which the model receives them.
    size: (height, width) of the samples in pixels; None means the run's size. The engine sets it before it passes
    prompts to backbones and rewards.
    source: name of the prompt list that the prompt belongs to; empty if the run has only one.
    fps: frames per second of the samples, for rewards; None for images, and until the engine sets it.
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
        """Everything that the conditioning depends on: text, digests of the media, size."""
        return self.text, tuple(medium.digest for medium in self.media), self.size

    def sized(self, size: tuple[int, int], fps: float | None = None) -> Prompt:
        """Return the prompt with `size` and `fps` filled in where they are None."""
        size = size if self.size is None else self.size
        fps = fps if self.fps is None else self.fps
        return self if (size, fps) == (self.size, self.fps) else replace(self, size=size, fps=fps)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Encoded prompts: named tensors with the batch as their first dimension.

    The engine treats the tensors as opaque: it caches one row per prompt, selects rows and concatenates batches.

    lengths: for tensors [B, L, ...] with rows of different lengths: the length of each row, by tensor name. Rows are
    zero-padded to the longest row. Lengths are Python integers, so that reading them does not synchronize the device. A
    model that needs a padding mask adds it to the tensors, True at the valid positions.
    """

    tensors: Mapping[str, Tensor]
    lengths: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def rows(self, index: Sequence[int] | slice) -> Conditioning:
        """Select rows, trimmed to the longest selected row."""
        if not isinstance(index, slice):
            from dgpo_core.transfers import to_device  # not needed to import the types

            indices = to_device(index, next(iter(self.tensors.values())).device)
            return self._trimmed(
                {name: tensor[indices] for name, tensor in self.tensors.items()},
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
        """Repeat a single row `count` times, without copying."""
        return Conditioning(
            {n: t.expand(count, *t.shape[1:]) for n, t in self.tensors.items()},
            {n: lengths * count for n, lengths in self.lengths.items()},
        )

    def to(self, device: torch.device) -> Conditioning:
        """Move all tensors to a device."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.lengths)

    @staticmethod
    def cat(batches: Sequence[Conditioning]) -> Conditioning:
        """Concatenate batches; pads tensors with `lengths` to the longest row."""
        if len(batches) == 1:
            return batches[0]
        import torch

        first = batches[0]
        assert all(batch.tensors.keys() == first.tensors.keys() for batch in batches), "rows of one model"
        joined = {}
        for name in first.tensors:
            tensors = [batch.tensors[name] for batch in batches]
            longest = max(t.shape[1] for t in tensors) if name in first.lengths else 0
            joined[name] = torch.cat([_padded(t, longest) if name in first.lengths else t for t in tensors])
        return Conditioning(joined, {n: tuple(i for batch in batches for i in batch.lengths[n]) for n in first.lengths})


def same_places(row: Conditioning, other: Conditioning) -> str | None:
    """Return why two batches of conditioning cannot be concatenated, or None if they can.

    Their tensors, `lengths`, shapes and dtypes must match.
    """
    if row.tensors.keys() != other.tensors.keys():
        return f"one prompt has the tensors {', '.join(row.tensors)}, another {', '.join(other.tensors)}"
    if row.lengths.keys() != other.lengths.keys():
        return f"one prompt has lengths for {', '.join(row.lengths) or 'no tensor'}, another for " + (
            ", ".join(other.lengths) or "no tensor"
        )
    for name, tensor in row.tensors.items():
        skipped = 2 if name in row.lengths else 1
        shape, other_shape = tensor.shape[skipped:], other.tensors[name].shape[skipped:]
        if shape != other_shape or tensor.dim() != other.tensors[name].dim():
            return (
                f"{name} has shape {tuple(tensor.shape)} for one prompt and {tuple(other.tensors[name].shape)} for "
                "another in the same bucket: declare rows of different lengths in `Conditioning.lengths`"
            )
        if tensor.dtype != other.tensors[name].dtype:
            return f"{name} has dtype {tensor.dtype} for one prompt and {other.tensors[name].dtype} for another"
    return None


def _padded(tensor: Tensor, length: int) -> Tensor:
    """Zero-pad [B, L, ...] to [B, length, ...]."""
    missing = length - tensor.shape[1]
    if not missing:
        return tensor
    import torch

    return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], 1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A model's noise schedule.

    A sampler's times are a grid descending from `first`, which is shifted, then stretched to `terminal`, then followed
    by a final 0 (`dgpo_core.flow.schedules`).

    shift: k > 0 maps sigma to k * sigma / (1 + (k - 1) * sigma).
    grid: "even" is linear from `first` to first / steps. "scheduler" is linear from `first` to the shifted 1/1000, and
    then shifted as a whole: diffusers' FlowMatchEulerDiscreteScheduler without explicit sigmas. A tuple lists the
    unshifted times for the requested number of steps, descending from `first`. Samplers with their own grid start it
    no higher than `first`.
    terminal: last time before 0, in (0, 1); all times are stretched away from 1 to end there. None: no stretching.
    first: highest time of the grid, in (0, 1]. The initial state is standard normal noise times `Backbone.start`.
    """

    shift: float = 1.0
    grid: Literal["even", "scheduler"] | tuple[float, ...] = "scheduler"
    terminal: float | None = None
    first: float = 1.0


@dataclass(frozen=True, slots=True)
class Path:
    """The states that a sampler visited, kept only for objectives with `needs_path`.

    states [steps + 1, B, C, H, W] from noise to data; sigmas [steps + 1]; log_probs [steps, B] (mean over non-batch
    dimensions), or None for a deterministic sampler; means [steps, B, C, H, W]: those of the steps' distributions,
    optional, and kept only for objectives with `needs_means`.
    """

    states: Tensor
    sigmas: Tensor
    log_probs: Tensor | None = None
    means: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Output of a sampler: clean latents x0 [B, C, H, W], and the path if requested."""

    x0: Tensor
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """A micro-batch of B samples of the same size.

    samples: their indices in the flat, group-major order of the iteration.
    """

    samples: Sequence[int]
    prompts: tuple[Prompt, ...]
    x0: Tensor
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Output of a reward model for B samples.

    values: float32 [B], higher is better.
    missing: bool [B], True where the sample could not be scored; its value is ignored.
    diagnostics: one mapping of JSON-serializable values per sample, or empty. Keys are free, except that `reason`,
    `marks` and `clauses` are defined in `dgpo_schemas.diagnostics`.
    """

    values: Tensor
    missing: Tensor
    diagnostics: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A good or bad sample for the self-test of a reward: media [3, H, W] or [F, 3, H, W], float in [0, 1].

    Every bad example of a reward must score below every good one.
    """

    name: str
    prompt: Prompt
    media: Tensor
    good: bool


@dataclass(frozen=True, slots=True)
class ScoredGroups:
    """The samples of an iteration with their rewards. Latents are on the device, everything else on the CPU.

    x0, paths: n latents [C, H, W], whose sizes can differ between groups, and their paths, of this rank only; `own`
    holds the indices of the n samples in the flat, group-major order. All other fields cover the samples of all ranks.
    rewards: float64 [g, G], the combined reward from which advantages are computed.
    summed: float64 [g, G], the weighted sum of the rewards, for display (nan where not scored). Equal to `rewards`
    unless rewards are normalized or transformed first.
    scored: bool [g, G].
    per_reward: label to float64 [g, G] (nan where missing).
    subscores: label to name to float64 [g * G], the components of each reward (nan where missing).
    asked: label to bool [g], whether the group's prompt source uses the reward; counted: label to bool [g], whether its
    weight there is not 0. A missing label means True.
    diversity: [g], mean pairwise distance between the members' media; distances: float64 [g, G, G], those of the pairs,
    or None without media.
    statistics: name to float64 [g, G], statistics of the media (`monitors.media_statistics`).
    candidates: those that the members were chosen from, if there were any.
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
    counted: Mapping[str, Tensor] = field(default_factory=lambda: MappingProxyType({}))
    candidates: Candidates | None = None
    distances: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of an iteration's groups, N per group, and which of them were drawn again, on the CPU.

    rewards, summed: float64 [g, N]; scored: bool [g, N]; as in `ScoredGroups`. chosen: int64 [g, G], ascending.
    """

    rewards: Tensor
    summed: Tensor
    scored: Tensor
    chosen: Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """The groups of an iteration with their signed weights c_i = sign(A_i) * w_i, input of the objective.

    x0, own, paths: as in `ScoredGroups`; latents are on the device.
    advantages, signed_weights: float64 [g, G] on the CPU (0 where not scored).
    scored: bool [g, G].
    residual: [g], |sum_i c_i|; 0 where the partition function cancels.
    kl_scales: float64 [g, G] on the CPU, factors of the members' KL terms (`Objective.kl_scales`); None means 1.
    """

    prompts: tuple[Prompt, ...]
    x0: Sequence[Tensor]
    own: Sequence[int]
    advantages: Tensor
    signed_weights: Tensor
    scored: Tensor
    residual: Tensor
    paths: tuple[Path, ...] = ()
    kl_scales: Tensor | None = None


@dataclass(frozen=True, slots=True)
class PathStep:
    """A stochastic sampler step from x at sigma to next_x at next_sigma, for B members.

    x, next_x: [B, ...].
    log_prob: [B], under the weights that drew the step (mean over non-batch dimensions).
    distribution: maps a velocity [B, ...] at x to (mean [B, ...], std) of next_x. Calls the sampler's
    `step_distribution`, so that the loss and the sampler agree.
    mean: [B, ...], of next_x under the weights that drew the step; None unless the objective `needs_means` and the
    sampler keeps them.
    stds: std of every step of the path, in order; 0 for steps that are not random.
    """

    x: Tensor
    next_x: Tensor
    sigma: float
    next_sigma: float
    log_prob: Tensor
    distribution: Callable[[Tensor], tuple[Tensor, float]]
    mean: Tensor | None = None
    stds: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Predictions:
    """Inputs of an objective for B members at one timestep.

    velocity: [B, ...], the policy's prediction at x_sigma, with gradient.
    target: [B, ...], (x_sigma - x0) / sigma, which is noise - x0 if x_sigma is a noised x0.
    sigma, advantages, signed_weights: [B].
    group_size: [B], number of scored members in the member's group.
    reference, base, old: [B, ...] or None, predictions of the model that `objective.reference` selects, of the frozen
    base model (of the reference, if that is `start` or `reset`), and of `ema_fast`. Predictions of the base model use
    the guidance scale `objective.kl_cfg`. Fields that the objective does not need can be set if they come at no cost.
    step: for objectives with `needs_path`; x_sigma is then the state of the path at sigma.
    loss_weight: [B], factor of squared velocity errors (`Backbone.loss_weight`); None means 1. `error` applies it. It
    does not apply to log-probabilities of a path.
    kl_scale: [B], the members' factors from `Objective.kl_scales`; None means 1. The objective applies it.
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
    kl_scale: Tensor | None = None

    def error(self, one: Tensor, other: Tensor) -> Tensor:
        """Return the squared error [B] between two velocities [B, ...], times `loss_weight`, with gradient.

        The mean over all dimensions except the batch, computed in float32 or higher.
        """
        return weighted(mean_square(one - other), self.loss_weight)


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean of squares over all dimensions except the batch: [B, ...] -> [B], in float32 or higher."""
    import torch

    if difference.dtype in (torch.float16, torch.bfloat16):
        difference = difference.float()
    return difference.square().flatten(1).mean(1)


def weighted(values: Tensor, weight: Tensor | None) -> Tensor:
    """Multiply values [B] by a weight [B]; None returns the values unchanged."""
    return values if weight is None else weight * values
