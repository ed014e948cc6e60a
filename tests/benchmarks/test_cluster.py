"""The table of docs/scaling.md says what it was made for."""

from __future__ import annotations

import pytest

from benchmarks.cluster import BEGIN, END, PAGE, Row, written
from dgpo_lab.planning.traffic import LINKS

ROW = Row("SD3.5-M", 8, 1, 24, 72.0, 16.6, {"scores": 0.01}, 1.0)


@pytest.mark.parametrize(("card", "within"), [("h200", "450 GB/s within"), ("l40s", "32 GB/s within")])
def test_the_note_has_the_link_of_the_card(card: str, within: str) -> None:
    text = written(f"before\n{BEGIN}old{END}after\n", [ROW], card, 50.0)
    assert f"{card.upper()}, at 40% of its peak; 50 GB/s between machines, {within}." in text
    assert "NVLink" not in text
    assert "| SD3.5-M | 8 | 1 | 24 | 72 | 16.6 | 0.01 | scores | 100% |" in text
    assert (text.startswith("before\n"), text.endswith("after\n"), "old" in text) == (True, True, False)


def test_the_page_has_a_note_of_this_form() -> None:
    made = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert f"H200, at 40% of its peak; 400 GB/s between machines, {LINKS['h200']} GB/s within." in made
