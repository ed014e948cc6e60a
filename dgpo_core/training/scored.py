"""Scores of samples: merging over ranks, and the reasons of missing scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_core.distributed.comparing import NOT_FINITE
from dgpo_core.distributed.processes import Processes, in_order
from dgpo_core.flow.groups import pairwise_distances
from dgpo_core.flow.sizes import runs
from dgpo_core.training.reward_calls import Reward
from dgpo_schemas.text import clean

__all__ = [
    "NOT_ASKED",
    "NO_REASON",
    "SampleScore",
    "ScoredSamples",
    "diversity",
    "member_distances",
    "merged",
    "missing_beyond",
    "missing_share",
    "not_finite",
    "reasons_of",
    "thumbnails",
]

THUMBNAIL = 32
"""Side length in pixels to which media are downscaled to measure the diversity of a group."""
REASON = 300
"""Maximum number of characters of a reason in a message."""
NO_REASON = "the rewards gave no reason"
NOT_ASKED: Mapping[str, Any] = {"asked": False}
"""Diagnostics of a sample whose source does not use the reward: it has no value, and does not count as missing."""
SampleScore = tuple[float, Mapping[str, Any]]
"""A sample's value, nan if missing, and diagnostics."""


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Scores of N samples in flat order.

    values: label -> float64 [N], nan where missing; diagnostics: label -> one mapping per sample; thumbnails: N tensors
    [D], where D may differ between groups; statistics: name -> float64 [N], media statistics (`monitors`); seconds:
    label -> time spent in the reward; others: label -> sample number -> score of another rank's sample that was
    compared on this rank.
    """

    values: Mapping[str, Tensor]
    diagnostics: Mapping[str, Sequence[Mapping[str, Any]]]
    thumbnails: Sequence[Tensor]
    statistics: Mapping[str, Tensor]
    seconds: Mapping[str, float]
    others: Mapping[str, Mapping[int, SampleScore]] = field(default_factory=dict)


def merged(local: ScoredSamples | None, processes: Processes, samples: Sequence[Sequence[int]]) -> ScoredSamples:
    """Gather the scores of all ranks, in flat order.

    local: this rank's scores, None if it has no samples; samples: the sample numbers of each rank.
    """
    if processes.count == 1:
        assert local is not None
        return local
    gathered = processes.all_gather_object(
        None
        if local is None
        else {
            "values": {label: v.tolist() for label, v in local.values.items()},
            "diagnostics": local.diagnostics,
            "statistics": {name: v.tolist() for name, v in local.statistics.items()},
            "seconds": local.seconds,
            "others": {label: [[i, *score] for i, score in of.items()] for label, of in local.others.items()},
        }
    )
    thumbnails = processes.all_gather_tensors(() if local is None else local.thumbnails)
    parts: list[dict[str, Any]] = [part for part in gathered if part is not None]

    def joined(kind: str) -> dict[str, list[Any]]:
        return {
            name: in_order([value for part in parts for value in part[kind][name]], samples) for name in parts[0][kind]
        }

    values, diagnostics = joined("values"), joined("diagnostics")
    for part in parts:
        for label, others in part["others"].items():
            for i, *score in others:
                values[label][i], diagnostics[label][i] = score
    return ScoredSamples(
        values={label: torch.tensor(v, dtype=torch.float64) for label, v in values.items()},
        diagnostics=diagnostics,
        thumbnails=in_order(thumbnails, samples),
        statistics={name: torch.tensor(v, dtype=torch.float64) for name, v in joined("statistics").items()},
        seconds={label: sum(part["seconds"][label] for part in parts) for label in parts[0]["seconds"]},
    )


def missing_beyond(
    limit: float, rewards: Sequence[Reward], scored: Tensor, samples: ScoredSamples
) -> tuple[float, str] | None:
    """Return (fraction, reasons) if the fraction of missing samples exceeds `limit` or is 1, otherwise None.

    scored: bool of any shape, whether a sample has all rewards with a nonzero weight.
    """
    missing = missing_share(scored)
    if missing <= limit and missing < 1:
        return None
    reasons = reasons_of([reward for reward in rewards if reward.counts], samples)  # rewards of weight 0 may fail
    return missing, reasons or NO_REASON


def missing_share(scored: Tensor) -> float:
    """Return the fraction of samples without a score, 0 if there are no samples; scored: bool of any shape."""
    return int((~scored).sum()) / scored.numel() if scored.numel() else 0.0


def reasons_of(rewards: Iterable[Reward], samples: ScoredSamples, numbers: Sequence[int] | None = None) -> str:
    """Join the first three distinct reasons for missing samples; empty if there are none. numbers: of these samples."""
    reasons = dict.fromkeys(
        f"{reward.label}: {clean(str(diagnostics['reason']), REASON)}"
        for reward in rewards
        for diagnostics in _of_samples(samples.diagnostics[reward.label], numbers)
        if diagnostics.get("reason")
    )
    return "; ".join(list(reasons)[:3])


def _of_samples(diagnostics: Sequence[Mapping[str, Any]], numbers: Sequence[int] | None) -> Iterable[Mapping[str, Any]]:
    return diagnostics if numbers is None else (diagnostics[i] for i in numbers)


def not_finite(rewards: Iterable[Reward], samples: ScoredSamples) -> bool:
    """Return whether scores are missing, all of them because the media are not finite."""
    reasons = {
        diagnostics.get("reason")
        for reward in rewards
        if reward.counts
        for value, diagnostics in zip(
            samples.values[reward.label].tolist(), samples.diagnostics[reward.label], strict=True
        )
        if value != value and diagnostics != NOT_ASKED
    }
    return reasons == {NOT_FINITE}


def diversity(thumbnails: Sequence[Tensor], groups: int) -> Tensor:
    """Compute the mean pairwise distance of each group's members, [groups]; see `member_distances`."""
    return member_distances(thumbnails, groups)[1]


def member_distances(thumbnails: Sequence[Tensor], groups: int) -> tuple[Tensor, Tensor]:
    """Compute the distances between each group's members, [groups, G, G], and their means, [groups]; thumbnails: group
    by group.

    The members of a group have the same size; sizes may differ between groups.
    """
    members = len(thumbnails) // groups
    found = []
    for run in runs([len(thumbnail) for thumbnail in thumbnails[::members]]):
        stacked = torch.stack(list(thumbnails[run.start * members : run.stop * members]))
        found.append(pairwise_distances(stacked.view(run.stop - run.start, members, -1)))
    distances, means = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(means)


def thumbnails(media: Tensor) -> Tensor:
    """Downscale media [B, (F,) 3, H, W] to thumbnails, [B, D]."""
    frames = (media.flatten(0, 1) if media.dim() == 5 else media).nan_to_num(0.0, 0.0, 0.0)
    if max(frames.shape[-2:]) > THUMBNAIL:
        if frames.device.type == "mps" and any(side % THUMBNAIL for side in frames.shape[-2:]):
            frames = frames.cpu()  # MPS pools to divisors of the size only
        frames = F.adaptive_avg_pool2d(frames, THUMBNAIL)
    return frames.reshape(len(media), -1)
