"""Reward hacking monitors: label-free media statistics, and alarms.

A target reward that rises while the images get worse is being exploited. Media statistics and rewards that are not
trained on ("monitors") reveal this: an alarm is raised when the target has risen since the first evaluation while a
monitor has left its tolerance. All functions are pure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.transfers import to_device
from dgpo_schemas.metrics import EvaluationRecord, GroupScore

__all__ = [
    "PIXELWISE",
    "STATISTICS",
    "Alarm",
    "Statistic",
    "alarms",
    "has_left",
    "media_statistics",
    "step_statistics",
    "tolerance_of",
]

DARK = 0.1
"""Luma below which a pixel counts as dark."""
EDGE = 0.1
"""Luma difference to the right or lower neighbor above which a pixel counts as an edge."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A media statistic.

    summary: what it measures; tolerance: the default tolerance, as a fraction of the first value; both_ways: whether a
    rise counts as well as a fall.
    """

    summary: str
    tolerance: float
    both_ways: bool


STATISTICS: Mapping[str, Statistic] = {
    "diversity": Statistic("mean pairwise distance between samples of a prompt", 0.25, both_ways=False),
    "saturation": Statistic("mean saturation (of HSV)", 0.5, both_ways=True),
    "edge_density": Statistic("share of pixels on an edge", 0.5, both_ways=True),
    "dark_pixels": Statistic("share of dark pixels", 0.5, both_ways=True),
    "step_disagreement": Statistic("distance to the sample of the same noise in many steps", 0.5, both_ways=True),
    "many_step_sharpness": Statistic("sharpness in many steps", 0.5, both_ways=True),
}
PIXELWISE = ("saturation", "edge_density", "dark_pixels")
"""Statistics of single samples; the others compare the samples of a prompt, or few-step with many-step samples."""
SMALLEST_TOLERANCE = 0.05
"""Lower bound of a statistic's tolerance, in the statistic's units, for first values near 0."""


def media_statistics(media: Tensor) -> dict[str, Tensor]:
    """Compute label-free statistics of each sample: name -> float32 [B] in [0, 1], on the media's device.

    media: [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1] (clamped, nan becomes 0); video frames are averaged.
    saturation: mean of (max - min) / max over channels, 0 for black; edge_density: fraction of pixels whose luma
    differs from that of the right or lower neighbor by more than `EDGE`; dark_pixels: fraction with a luma below
    `DARK`.
    """
    frames = _clean(media if media.dim() == 5 else media.unsqueeze(1))
    if not frames.numel():
        return {name: torch.zeros(len(media), device=media.device) for name in PIXELWISE}
    high, low = frames.amax(2), frames.amin(2)
    luma = _luma(frames)
    edge = torch.zeros_like(luma, dtype=torch.bool)
    edge[..., :-1] |= luma.diff(dim=-1).abs() > EDGE
    edge[..., :-1, :] |= luma.diff(dim=-2).abs() > EDGE
    per_pixel = {
        "saturation": (high - low) / high.clamp(min=1e-6),
        "edge_density": edge.float(),
        "dark_pixels": (luma < DARK).float(),
    }
    return {name: values.flatten(1).mean(1) for name, values in per_pixel.items()}


def _clean(media: Tensor) -> Tensor:
    """Convert to float32 in [0, 1]."""
    return media.float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)


def _luma(media: Tensor) -> Tensor:
    """Compute luma: [..., 3, H, W] -> [..., H, W]."""
    return (media * to_device(LUMA, media.device, media.dtype).view(3, 1, 1)).sum(-3)


def step_statistics(media: Tensor, many_step: Tensor) -> dict[str, Tensor]:
    """Compare samples solved in few steps (`media`) with the same samples solved in many steps from the same noise.

    Both are [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1] (clamped, nan becomes 0). Returns name -> float32 [B].
    step_disagreement: root mean square of the pixel difference; many_step_sharpness: root mean square of the luma
    difference between neighboring pixels of `many_step` (0 without neighbors), which falls with blur and rises with
    noise and ringing.
    """
    media, many_step = _clean(media), _clean(many_step)
    luma = _luma(many_step)
    neighbors = torch.cat([luma.diff(dim=-1).flatten(1), luma.diff(dim=-2).flatten(1)], 1)
    return {
        "step_disagreement": (media - many_step).square().flatten(1).mean(1).sqrt(),
        "many_step_sharpness": (neighbors.square().sum(1) / max(neighbors.shape[1], 1)).sqrt(),
    }


@dataclass(frozen=True, slots=True)
class Alarm:
    """The target rose while a monitor left its tolerance; changes are (value at the first evaluation, value now).

    source: the prompt source whose scores these are; empty for those of all held-out prompts.
    """

    iteration: int
    target: str
    target_change: tuple[float, float]
    monitor: str
    monitor_change: tuple[float, float]
    tolerance: float
    source: str = ""

    def __str__(self) -> str:
        (before, after), (was, now) = self.target_change, self.monitor_change
        way = "fell" if now < was else "rose"
        of_source = f"source {self.source}: " if self.source else ""
        return (
            f"alarm after iteration {self.iteration}: {of_source}{self.target} rose from {before:.3f} to "
            f"{after:.3f} while "
            f"{self.monitor} {way} from {was:.3f} to {now:.3f} (tolerance {self.tolerance:.3f}): a sign of reward "
            "hacking; look at the images"
        )


def _valid(lines: Iterable[Mapping[str, Any]]) -> Iterator[EvaluationRecord]:
    """Parse the lines; skip invalid ones, because a damaged log line must not end the run."""
    for line in lines:
        with contextlib.suppress(ValidationError):
            yield EvaluationRecord.model_validate(line)


def alarms(lines: Iterable[Mapping[str, Any]], tolerances: Mapping[str, float]) -> list[Alarm]:
    """Return the alarms of the last evaluation compared with the first one; empty if there is only one evaluation.

    The scores of each prompt source are compared as well; its target is the first reward that it uses.

    lines: the lines of a run's evaluations.jsonl, in order; the first line of each evaluation is the target.
    tolerances: label -> allowed change in the monitor's units; by default 0 for a reward and a fraction of the first
    value for a statistic. A change counts only if the two 95% intervals do not overlap, so that noise raises no alarm.
    """
    records = sorted(_valid(lines), key=lambda record: record.iteration)
    base: dict[str, EvaluationRecord] = {}
    for record in records:
        base.setdefault(record.reward, record)  # also for a monitor that was added by a resume
    last = [record for record in records if record.iteration == records[-1].iteration]
    found = _alarms([(now, base[now.reward], now) for now in last if base[now.reward] is not now], tolerances)
    for source in dict.fromkeys(name for record in last for name in record.sources):
        pairs = [(now, base[now.reward].sources.get(source), now.sources.get(source)) for now in last]
        known = [(now, was, score) for now, was, score in pairs if was is not None and score is not None]
        found += _alarms([pair for pair in known if base[pair[0].reward] is not pair[0]], tolerances, source)
    return found


def _alarms(
    pairs: Sequence[tuple[EvaluationRecord, GroupScore, GroupScore]], tolerances: Mapping[str, float], source: str = ""
) -> list[Alarm]:
    """Return the alarms among (record, score at the first evaluation, score now), in the order of the records."""
    target = next(((record, was, now) for record, was, now in pairs if record.role == "target"), None)
    if target is None or target[2].value <= target[1].value:
        return []
    found = []
    for record, was, now in pairs:
        if record.role == "target":
            continue
        tolerance = tolerance_of(record.reward, record.role, was.value, tolerances)
        if has_left(record.reward, was, now, tolerance):
            found.append(
                Alarm(
                    iteration=record.iteration,
                    target=target[0].reward,
                    target_change=(target[1].value, target[2].value),
                    monitor=record.reward,
                    monitor_change=(was.value, now.value),
                    tolerance=tolerance,
                    source=source,
                )
            )
    return found


def tolerance_of(name: str, role: str, first: float, tolerances: Mapping[str, float]) -> float:
    """Return the allowed change of a monitor, in its units; `first` is its value at the first evaluation."""
    if name in tolerances:
        return tolerances[name]
    if role != "statistic":
        return 0.0
    return max(SMALLEST_TOLERANCE, STATISTICS[name].tolerance * abs(first))


def has_left(name: str, was: GroupScore, now: GroupScore, tolerance: float) -> bool:
    """Return whether a monitor fell by more than its tolerance with disjoint intervals; some statistics may also
    rise."""
    both_ways = name in STATISTICS and STATISTICS[name].both_ways
    fell = now.value < was.value - tolerance and now.high < was.low
    rose = both_ways and now.value > was.value + tolerance and now.low > was.high
    return fell or rose
