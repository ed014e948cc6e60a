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

__all__ = ["local_statistics", "member_loss", "no_statistics", "spans_micro_batches", "statistic_of_bundle"]


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


def spans_micro_batches(objective: Objective, update: Update, bundle: Bundle) -> bool:
    """Return whether a bundle is several micro-batches of one group that is local to this rank, whose statistic must be
    known before the first backward pass."""
    return objective.needs_statistic and len(bundle) > 1 and not update.is_split(bundle[0])


def statistic_of_bundle(models: Models, batches: list[MicroBatch]) -> tuple[Tensor, Predictions]:
    """Compute the statistic [] of the single group in a bundle of several micro-batches.

    Also returns the predictions of the first micro-batch with their graph, for its loss: n micro-batches take 2n - 1
    passes. The first one, because gradients then add up in the order of the micro-batches; it comes last, so that no
    other pass runs while its activations are held.
    """
    with torch.no_grad():
        others = [models.objective.statistic(models.predictions(b)) for b in batches[1:]]
    first = models.predictions(batches[0])
    with torch.no_grad():
        return torch.cat([models.objective.statistic(first), *others]).sum(), first


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
