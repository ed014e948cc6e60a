"""Exact statistics of groups at any micro-batch size, and the loss that they make of a micro-batch.

Legend: g groups, B members in a micro-batch, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.flow.preference import group_sums
from dgpo_core.training.microbatches import Bundle, Members, MicroBatch, Update
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_core.distributed.passes import Pass
    from dgpo_core.training.models import Models

__all__ = ["member_loss", "no_statistics", "statistic_of_bundle", "statistics_here", "twice"]


def member_loss(
    objective: Objective, predictions: Predictions, members: Members, known: Tensor | None = None
) -> MemberLoss:
    """The objective's loss of a micro-batch.

    known: statistics [g] of the update's groups that are not whole in this micro-batch, nan of the others, or one of
    all its members [].
    """
    if not objective.needs_statistic:
        return objective.loss(predictions, None)
    if known is not None and not known.dim():
        return objective.loss(predictions, known.expand(len(members.names)))
    statistic = group_sums(objective.statistic(predictions), members.same_group)
    if known is not None:
        given = known[members.group].to(statistic)
        statistic = torch.where(given.isnan(), statistic, given)
    return objective.loss(predictions, statistic)


def twice(objective: Objective, update: Update, bundle: Bundle) -> bool:
    """Whether a bundle is gone through twice: the several micro-batches of a single group, all of which is here."""
    return objective.needs_statistic and len(bundle) > 1 and not update.is_split(bundle[0])


@torch.no_grad()
def statistic_of_bundle(models: Models, batches: list[MicroBatch]) -> Tensor:
    """Statistic [] of the single group that several micro-batches are of."""
    return torch.cat([models.objective.statistic(models.predictions(b)) for b in batches]).sum()


def no_statistics(models: Models, update: Update) -> Tensor:
    """Zeros [T, g]."""
    weight = next(iter(models.policy.parameters.values()))
    return torch.zeros(len(update.sigmas), len(update.groups), device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def statistics_here(models: Models, update: Update, micro_batch: int, interrupt: Callable[[], None]) -> Tensor:
    """What this process's members add to the statistics [T, g] of the groups that are sharded across processes; 0 of
    the other groups."""
    table = no_statistics(models, update)
    some = [members if split else [] for members, split in zip(update.own, update.split, strict=True)]
    parts = [part for bundle in update.bundles(some, micro_batch) for part in bundle]
    passes: list[Pass] = [*models.others(statistic_only=True), "policy"]
    models.policy.agree(lambda: passes * (len(parts) * len(table)))
    for members in map(update.gather, parts):
        of_group = (members.group == torch.arange(len(update.groups), device=table.device)[:, None]).to(table.dtype)
        for t in range(len(table)):
            interrupt()
            predictions = models.predictions(models.at(update, members, t, statistic_only=True))
            table[t] += of_group @ models.objective.statistic(predictions).to(table)
    return table
