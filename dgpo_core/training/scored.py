"""What rewards have said of samples, of all processes together, and why scores are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_core.distributed.comparing import NOT_FINITE
from dgpo_core.distributed.processes import Processes, in_order
from dgpo_core.flow.groups import mean_pairwise_distance
from dgpo_core.flow.sizes import runs
from dgpo_core.training.reward_calls import Reward
from dgpo_schemas.text import clean

__all__ = [
    "NOT_ASKED",
    "Said",
    "ScoredSamples",
    "diversity",
    "merged",
    "missing_beyond",
    "not_finite",
    "reasons_of",
    "thumbnails",
]

THUMBNAIL = 32
"""Side in pixels to which media are averaged before the diversity of a group is measured."""
REASON = 300
"""Characters of a reward's reason in a message."""
NOT_ASKED: Mapping[str, Any] = {"asked": False}
"""Diagnostics of a sample whose source does not ask for the reward: it has no value, and none is missing."""
Said = tuple[float, Mapping[str, Any]]
"""A sample's value, nan if it is missing, and diagnostics."""


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Scores of N samples in flat order.

    values: label to float64 [N] (nan where missing); diagnostics: label to one mapping a sample; thumbnails: N of [D],
    where D may differ from group to group; statistics: name to float64 [N], of the media themselves (`monitors`);
    seconds: label to time spent in the reward; others: label to number to what a reward that compares says of samples
    of other processes, which it has compared here (theirs have no value there).
    """

    values: Mapping[str, Tensor]
    diagnostics: Mapping[str, Sequence[Mapping[str, Any]]]
    thumbnails: Sequence[Tensor]
    statistics: Mapping[str, Tensor]
    seconds: Mapping[str, float]
    others: Mapping[str, Mapping[int, Said]] = field(default_factory=dict)


def merged(own: ScoredSamples | None, processes: Processes, samples: Sequence[Sequence[int]]) -> ScoredSamples:
    """What all processes have scored, in flat order; own: this one's, None if it had nothing to score.

    samples: the numbers of each process's samples, as `own` and its like have them.
    """
    if processes.count == 1:
        assert own is not None
        return own
    said = processes.all_gather_object(
        None
        if own is None
        else {
            "values": {label: v.tolist() for label, v in own.values.items()},
            "diagnostics": own.diagnostics,
            "statistics": {name: v.tolist() for name, v in own.statistics.items()},
            "seconds": own.seconds,
            "others": {label: [[i, *one] for i, one in said.items()] for label, said in own.others.items()},
        }
    )
    thumbnails = processes.all_gather_tensors(() if own is None else own.thumbnails)
    parts: list[dict[str, Any]] = [part for part in said if part is not None]

    def joined(kind: str) -> dict[str, list[Any]]:
        return {
            name: in_order([value for part in parts for value in part[kind][name]], samples) for name in parts[0][kind]
        }

    values, diagnostics = joined("values"), joined("diagnostics")
    for part in parts:
        for label, others in part["others"].items():
            for i, *one in others:
                values[label][i], diagnostics[label][i] = one
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
    """(share, reasons) if a larger share of samples than `limit` is not scored, or none is; else None.

    scored bool of any shape: whether a sample has every reward that counts.
    """
    missing = int((~scored).sum()) / scored.numel()
    if missing <= limit and missing < 1:
        return None
    why = reasons_of([reward for reward in rewards if reward.weight], samples)  # the others may fail
    return missing, why or "the rewards gave no reason"


def reasons_of(rewards: Iterable[Reward], samples: ScoredSamples) -> str:
    """In words, the first few reasons that rewards give for samples that are missing; empty if they give none."""
    reasons = dict.fromkeys(
        f"{reward.label}: {clean(str(diagnostics['reason']), REASON)}"
        for reward in rewards
        for diagnostics in samples.diagnostics[reward.label]
        if diagnostics.get("reason")
    )
    return "; ".join(list(reasons)[:3])


def not_finite(rewards: Iterable[Reward], samples: ScoredSamples) -> bool:
    """Whether scores are missing, and none for another reason than that the media are not finite."""
    reasons = {
        diagnostics.get("reason")
        for reward in rewards
        if reward.weight
        for value, diagnostics in zip(
            samples.values[reward.label].tolist(), samples.diagnostics[reward.label], strict=True
        )
        if value != value and diagnostics != NOT_ASKED
    }
    return reasons == {NOT_FINITE}


def diversity(thumbnails: Sequence[Tensor], groups: int) -> Tensor:
    """[groups] the mean pairwise distance of each group's members, given group by group.

    The members of a group have one size, and only they are compared: other groups' sizes do not matter.
    """
    members = len(thumbnails) // groups
    found = []
    for run in runs([len(one) for one in thumbnails[::members]]):
        some = torch.stack(list(thumbnails[run.start * members : run.stop * members]))
        found.append(mean_pairwise_distance(some.view(run.stop - run.start, members, -1)))
    return torch.cat(found)


def thumbnails(media: Tensor) -> Tensor:
    """Media [B, (F,) 3, H, W] averaged to small images, [B, D]."""
    frames = (media.flatten(0, 1) if media.dim() == 5 else media).nan_to_num(0.0, 0.0, 0.0)
    if max(frames.shape[-2:]) > THUMBNAIL:
        frames = F.adaptive_avg_pool2d(frames, THUMBNAIL)
    return frames.reshape(len(media), -1)
