"""Exact group statistics for any micro-batch size, and the loss of a micro-batch.

g is the number of groups, B of members in a micro-batch, T of timesteps.
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

__all__ = ["local_statistics", "member_loss", "needs_two_passes", "no_statistics", "statistic_of_bundle"]


def member_loss(
    objective: Objective, predictions: Predictions, members: Members, known: Tensor | None = None
) -> MemberLoss:
    """Compute the objective's loss of a micro-batch.

    known: statistics [g] of the update's groups, nan for groups that are complete in this micro-batch; or one statistic
    [] for all members.
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


def needs_two_passes(objective: Objective, update: Update, bundle: Bundle) -> bool:
    """Return whether a bundle needs two forward passes: several micro-batches of one group that is local to this
    rank."""
    return objective.needs_statistic and len(bundle) > 1 and not update.is_split(bundle[0])


@torch.no_grad()
def statistic_of_bundle(models: Models, batches: list[MicroBatch]) -> Tensor:
    """Compute the statistic [] of the single group in a bundle of several micro-batches."""
    return torch.cat([models.objective.statistic(models.predictions(b)) for b in batches]).sum()


def no_statistics(models: Models, update: Update) -> Tensor:
    """Return zeros [T, g]."""
    weight = next(iter(models.policy.parameters.values()))
    return torch.zeros(len(update.sigmas), len(update.groups), device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def local_statistics(models: Models, update: Update, micro_batch: int, interrupt: Callable[[], None]) -> Tensor:
    """Compute this rank's part of the statistics [T, g] of groups that are split across ranks; 0 for other groups."""
    table = no_statistics(models, update)
    members_of_split = [
        members if split else [] for members, split in zip(update.local_members, update.split, strict=True)
    ]
    parts = [part for bundle in update.bundles(members_of_split, micro_batch) for part in bundle]
    passes: list[Pass] = [*models.others(statistic_only=True), "policy"]
    models.policy.agree(lambda: passes * (len(parts) * len(table)))
    for members in map(update.gather, parts):
        of_group = (members.group == torch.arange(len(update.groups), device=table.device)[:, None]).to(table.dtype)
        for t in range(len(table)):
            interrupt()
            predictions = models.predictions(models.at(update, members, t, statistic_only=True))
            table[t] += of_group @ models.objective.statistic(predictions).to(table)
    return table
