"""Whole units of work for each process."""

from __future__ import annotations

import pytest
import torch

from dgpo_core.distributed.partitioning import exchange_tensors, partition_units
from dgpo_core.distributed.processes import Processes


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_units_stay_whole_and_in_order(count: int) -> None:
    units = [range(0, 4), range(4, 8), range(8, 9), range(9, 13), range(13, 14)]
    found = partition_units(units, count)
    assert len(found) == count
    assert [thing for part in found for thing in part] == list(range(14))
    numbers = [sum(unit[0] in part for unit in units) for part in found]
    assert all(all(thing in part for thing in unit) for part in found for unit in units if unit[0] in part)
    assert max(numbers) - min(numbers) <= 1


def test_one_process_takes_what_it_holds() -> None:
    held = {i: torch.full((2,), float(i)) for i in (3, 1, 2)}
    found = exchange_tensors(Processes(), held, dict.fromkeys(held, 0), dict.fromkeys((1, 2, 3), 0))
    assert list(found) == [1, 2, 3]
    assert all(torch.equal(found[i], held[i]) for i in held)
