"""The numbers of docs/parity.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs/parity.md").read_text(encoding="utf-8")


def share(updates: int, repeats: int) -> float:
    """1 - product of the decays of all moves so far."""
    left = 1.0
    for k in range(7, updates + 1, 8):
        left *= min((1 + k) / (10 + k), 0.9) ** repeats
    return 1 - left


def test_the_table_of_the_slow_average() -> None:
    columns = [int(n) for n in re.findall(r"`repeats: (\d+)`", re.search(r"^\| updates \|.*$", PAGE, re.M)[0])]  # type: ignore[index]
    rows = re.findall(r"^\| (\d+) \|((?: \d\.\d{4} \|)+)$", PAGE, re.M)
    assert [int(row) for row, _ in rows] == [6, 8, 40, 80, 200]
    for row, cells in rows:
        found = [float(cell) for cell in cells.strip(" |").split("|")]
        assert found == [pytest.approx(share(int(row), n), abs=5.1e-5) for n in columns], row


def test_the_tests_that_it_names_are_there() -> None:
    root = Path(__file__).parents[2]
    tests = "".join(path.read_text(encoding="utf-8") for path in root.glob("tests/**/test_*.py"))
    for name in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {name}(" in tests, name
    for path in re.findall(r"`((?:tests|plugins)/[\w./-]+)`", PAGE):
        assert (root / path).exists(), path
