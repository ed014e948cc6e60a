"""Partition work over ranks in whole batches, so that results are bit-identical for any world size.

The last bits of what a network or a reward computes for a sample depend on the batch that the sample is in. Results
stay the same if every rank processes whole batches exactly as a single process would form them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgpo_core.distributed.processes import Processes, cut

__all__ = ["exchange_tensors", "partition_units"]


def partition_units(units: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Assign whole units to `count` ranks, in order; the numbers of units per rank differ by at most one.

    Returns the items of each rank's units.
    """
    parts = [cut(len(units), rank, count) for rank in range(count)]
    return [[item for unit in units[part.start : part.stop] for item in unit] for part in parts]


def exchange_tensors(
    processes: Processes, local: Mapping[int, Tensor], sources: Mapping[int, int], targets: Mapping[int, int]
) -> dict[int, Tensor]:
    """Move numbered tensors between ranks, bit-exactly.

    local: the tensors of this rank; sources, targets: the rank that has and the rank that needs each number, the same
    on all ranks. Returns the tensors that this rank needs, on the CPU, in the order of `targets`. All ranks must call
    this together.
    """
    metadata: list[dict[str, Any]] = processes.all_gather_object(
        {str(i): [list(t.shape), str(t.dtype).removeprefix("torch.")] for i, t in local.items()}
    )
    received = {}
    for i, target in targets.items():
        source = sources[i]
        if source == target == processes.rank:
            received[i] = local[i].cpu()
        elif source == processes.rank:
            processes.send(local[i], target)
        elif target == processes.rank:
            shape, dtype = metadata[source][str(i)]
            received[i] = processes.receive(source, shape, getattr(torch, dtype))
    return received
