"""A few random kills and a short look at memory; `python -m tests.faults` does more of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.damage import KINDS, damage_at_random
from tests.faults.kills import kill_at_random
from tests.faults.memory import growth


@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 6), pytest.param(1, 25, marks=pytest.mark.slow), pytest.param(2, 8, marks=pytest.mark.slow)],
)
def test_random_kills_change_nothing(processes: int, kills: int, tmp_path: Path) -> None:
    *_, found = kill_at_random(kills, seed=1, directory=tmp_path, processes=processes)
    assert found.failures == []
    assert found.kills.total() >= kills
    assert len(found.kills) >= min(5, kills // 2), "of many kinds"


def test_memory_stays_as_it_is(tmp_path: Path) -> None:
    first, last = growth(tmp_path, 100)
    assert last < 1.02 * first, f"{first / 2**20:.1f} MiB became {last / 2**20:.1f} MiB"


def test_no_damage_is_taken_silently(tmp_path: Path) -> None:
    files = 17
    *_, found = damage_at_random((5 * KINDS)[:files], seed=1, directory=tmp_path)
    assert found.failures == []
    assert len(found.verdicts) == files
    # What stands at the end of a log is computed again, for it may have been half written.
    assert sum(row["refused"] + row["told"] > 0 for row in found.verdicts.values()) > files - 4, found.table()
