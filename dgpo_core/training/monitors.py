"""Guards against reward hacking: what media look like, whatever is rewarded, and when to be alarmed.

A reward that rises while the images get worse is being gamed. Label-free statistics of the media and rewards that are
not trained on ("monitors") show it; an alarm is raised when the target has risen since the first evaluation while
a monitor has left its tolerance. Pure: tensors and records in, numbers out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

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
"""Luma below which a pixel is dark."""
EDGE = 0.1
"""Difference of luma to the right or lower neighbor above which a pixel is on an edge."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic of media: what it is, the share of its first value that is its default tolerance, and whether a rise
    is as suspicious as a fall."""

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
"""Statistics of single samples; the others compare samples: of a prompt, or in a few steps and in many."""
SMALLEST_TOLERANCE = 0.05
"""A statistic near 0 may move so far, in its own units, whatever share of its first value that is."""


def media_statistics(media: Tensor) -> dict[str, Tensor]:
    """Label-free statistics of each sample, name to float32 [B] in [0, 1], on the media's device.

    media [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1] (clamped, nan as 0); frames of a video are averaged.
    saturation: mean of (max - min) / max over channels, 0 for black; edge_density: share of pixels whose luma differs
    from that of the right or lower neighbor by more than `EDGE`; dark_pixels: share with a luma below `DARK`.
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
    """Colors as float32 in [0, 1]."""
    return media.float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)


def _luma(media: Tensor) -> Tensor:
    """[..., 3, H, W] to [..., H, W]."""
    return (media * media.new_tensor(LUMA).view(3, 1, 1)).sum(-3)


def step_statistics(media: Tensor, many_step: Tensor) -> dict[str, Tensor]:
    """What solving the flow in few steps does to samples; `media` in few and `many_step` in many, of the same noise.

    Both [B, 3, H, W] or [B, F, 3, H, W], float in [0, 1] (clamped, nan as 0); name to float32 [B]. step_disagreement:
    root mean square of the difference of pixels; many_step_sharpness: root mean square of the difference of luma
    between neighboring pixels of `many_step` (0 where there are none), which falls with blur and rises with noise and
    ringing."""
    media, many_step = _clean(media), _clean(many_step)
    luma = _luma(many_step)
    neighbors = torch.cat([luma.diff(dim=-1).flatten(1), luma.diff(dim=-2).flatten(1)], 1)
    return {
        "step_disagreement": (media - many_step).square().flatten(1).mean(1).sqrt(),
        "many_step_sharpness": (neighbors.square().sum(1) / max(neighbors.shape[1], 1)).sqrt(),
    }


@dataclass(frozen=True, slots=True)
class Alarm:
    """The target has risen while a monitor left its tolerance; values at the first evaluation and now."""

    iteration: int
    target: str
    target_change: tuple[float, float]
    monitor: str
    monitor_change: tuple[float, float]
    tolerance: float

    def __str__(self) -> str:
        (before, after), (was, now) = self.target_change, self.monitor_change
        way = "fell" if now < was else "rose"
        return (
            f"alarm after iteration {self.iteration}: {self.target} rose from {before:.3f} to {after:.3f} while "
            f"{self.monitor} {way} from {was:.3f} to {now:.3f} (tolerance {self.tolerance:.3f}): a sign of reward "
            "hacking; look "
            "at the images"
        )


def _sound(lines: Iterable[Mapping[str, Any]]) -> Iterator[EvaluationRecord]:
    """The lines that say what they should; a damaged one must not end a run that goes on without it."""
    for line in lines:
        with contextlib.suppress(ValidationError):
            yield EvaluationRecord.model_validate(line)


def alarms(lines: Iterable[Mapping[str, Any]], tolerances: Mapping[str, float]) -> list[Alarm]:
    """Alarms of the last evaluation, compared with the first one; empty if there is only one.

    lines: every line of a run's evaluations.jsonl, in order; the first of each evaluation is the target. tolerances:
    label to the change, in the monitor's own units, that is let pass; where none is given it is 0 for a reward and a
    share of the first value for a statistic. A change counts only if the two 95 % intervals do not overlap, so that
    noise raises no alarm."""
    records = sorted(_sound(lines), key=lambda record: record.iteration)
    base: dict[str, EvaluationRecord] = {}
    for record in records:
        base.setdefault(record.reward, record)  # a monitor that was added later has its first value there
    last = [record for record in records if record.iteration == records[-1].iteration]
    after = next((record for record in last if record.role == "target"), None)
    if after is None or after.value <= base[after.reward].value:
        return []
    before = base[after.reward]
    found = []
    for now in last:
        was = base[now.reward]
        if now.role == "target" or was is now:
            continue
        tolerance = tolerance_of(now.reward, now.role, was.value, tolerances)
        if has_left(now.reward, was, now, tolerance):
            found.append(
                Alarm(
                    iteration=now.iteration,
                    target=after.reward,
                    target_change=(before.value, after.value),
                    monitor=now.reward,
                    monitor_change=(was.value, now.value),
                    tolerance=tolerance,
                )
            )
    return found


def tolerance_of(name: str, role: str, first: float, tolerances: Mapping[str, float]) -> float:
    """The change of a monitor, in its own units, that is let pass; `first` is its value at the first evaluation."""
    if name in tolerances:
        return tolerances[name]
    if role != "statistic":
        return 0.0
    return max(SMALLEST_TOLERANCE, STATISTICS[name].tolerance * abs(first))


def has_left(name: str, was: GroupScore, now: GroupScore, tolerance: float) -> bool:
    """Whether a monitor moved by more than its tolerance, and beyond both intervals: down, or a statistic either
    way."""
    both_ways = name in STATISTICS and STATISTICS[name].both_ways
    fell = now.value < was.value - tolerance and now.high < was.low
    rose = both_ways and now.value > was.value + tolerance and now.low > was.high
    return fell or rose
