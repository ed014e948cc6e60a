"""Default sizes of micro-batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from dgpo_schemas.run import RunConfig

__all__ = ["drawn_at_once", "trained_at_once"]

MOST = 32
"""Default maximum number of samples in a micro-batch on a GPU."""


def drawn_at_once(config: RunConfig, device: torch.device) -> int:
    """Return `rollout.micro_batch`, or by default:

    On a GPU whole groups of together at most `MOST` samples (or equal parts of a larger group), so that rewards score
    the first micro-batches while the others are drawn, and memory does not grow with the iteration. On the CPU, which
    has no queue to keep full, all samples of an iteration.
    """
    rollout = config.rollout
    if rollout.micro_batch is not None:
        return rollout.micro_batch
    if device.type == "cpu":
        return rollout.groups * rollout.group_size
    return _whole_groups(rollout.groups, rollout.group_size)


def trained_at_once(config: RunConfig, device: torch.device, *, sharded: bool = False) -> int:
    """Return `optimizer.micro_batch`, or one group by default.

    `auto`: on a GPU whole groups of together at most `MOST` samples, but at least one group, of which an update
    subtracts what does not fit: halving a micro-batch of several groups keeps groups whole as long as it can, and a
    whole group needs one pass of the policy instead of two. One group on the CPU, and for a model that is sharded
    across ranks, which cannot try again.
    """
    rollout, size = config.rollout, config.optimizer.micro_batch
    if isinstance(size, int):
        return size
    if size is None or sharded or device.type == "cpu":
        return max(rollout.group_size, 1)
    groups = rollout.groups // config.optimizer.updates
    return max(_whole_groups(groups, rollout.group_size), rollout.group_size)


def _whole_groups(groups: int, members: int) -> int:
    """Return the size of micro-batches with as equal numbers of whole groups as possible, or of equal parts of one."""
    if members > MOST:
        return -(-members // -(-members // MOST))
    return -(-groups // -(-groups // (MOST // members))) * members
