"""Work that is cut over processes in whole units, so that its results are the same to the bit for any number of them.

What a network or a reward computes of a sample depends, in its last bits, on the batch that the sample is in. Where the
batches are those that one process would make, and each process has some of them whole, so are the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgpo_core.distributed.processes import Processes, cut

__all__ = ["exchange_tensors", "partition_units"]


def partition_units(units: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The things of each of `count` processes: whole units in order, as many for each as can be, up to one."""
    parts = [cut(len(units), rank, count) for rank in range(count)]
    return [[thing for unit in units[part.start : part.stop] for thing in unit] for part in parts]


def exchange_tensors(
    processes: Processes, held: Mapping[int, Tensor], holders: Mapping[int, int], takers: Mapping[int, int]
) -> dict[int, Tensor]:
    """Numbered tensors from the processes that hold them to those that take them, on the CPU, exact to the bit.

    held: those of this process; holders, takers: the process of each number, the same everywhere. Returns those that
    this process takes, in the order of `takers`. To be called by all processes.
    """
    reported: list[dict[str, Any]] = processes.all_gather_object(
        {str(i): [list(t.shape), str(t.dtype).removeprefix("torch.")] for i, t in held.items()}
    )
    found = {}
    for i, taker in takers.items():
        holder = holders[i]
        if holder == taker == processes.rank:
            found[i] = held[i].cpu()
        elif holder == processes.rank:
            processes.send(held[i], taker)
        elif taker == processes.rank:
            shape, dtype = reported[holder][str(i)]
            found[i] = processes.receive(holder, shape, getattr(torch, dtype))
    return found
