"""docs/performance.md is what `python -m benchmarks --pages` writes from the record; every part can be measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import choices, record, scaling
from benchmarks.__main__ import PARTS
from benchmarks.figures import draw
from benchmarks.page import HERE, write_page, write_roofline
from benchmarks.roofline import CASES

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_that_of_the_record(tmp_path: Path) -> None:
    measured = record.load(DOCS / "performance" / "record.json")
    assert measured.keys() >= set(PARTS)
    written = write_page(measured, tmp_path)
    assert written.read_text(encoding="utf-8") == (DOCS / "performance.md").read_text(encoding="utf-8")
    draw(measured, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.png")) == sorted(
        p.name for p in (DOCS / "performance").glob("*.png")
    )


def test_the_roofline_is_that_of_the_record(tmp_path: Path) -> None:
    measured = record.load(DOCS / "performance" / "record.json")
    assert list(measured["roofline"]["measured"]) == list(CASES)
    written = write_roofline(measured, tmp_path)
    assert written.read_text(encoding="utf-8") == (DOCS / "roofline.md").read_text(encoding="utf-8")


def test_a_record_of_nothing(tmp_path: Path) -> None:
    text = write_page({}, tmp_path).read_text(encoding="utf-8")
    assert text.count("Not recorded yet") == 4
    assert "No card has run anything of this yet" in text


def test_one_component_replaces_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    record.save(path, "overlap", 0.123456789)
    found = record.save(path, "choices", [choices.Outcome("a", "rollout", ("b=1",), 1.0, 2.0)])
    assert found["overlap"]["measured"] == 0.12346
    assert found["choices"]["measured"][0]["measured"] == 2.0
    assert found == record.load(path)


@pytest.mark.parametrize(
    "series", [s for s in scaling.SERIES if s.name in ("groups", "resolution")], ids=lambda s: s.name
)
def test_series_can_be_measured(series: scaling.Series) -> None:
    """The first points of one on the miniature and of the one on random weights."""
    points = scaling.measure(scaling.Series(**{**vars(series), "numbers": series.numbers[:1]}), iterations=1, turns=1)
    assert points[0].number == series.numbers[0]
    assert set(points[0].seconds) == {"rollout", "optimize"}
    assert min(points[0].seconds.values()) > 0


@pytest.mark.slow
def test_a_choice_can_be_measured() -> None:
    (choice,) = (c for c in choices.CHOICES if "best-vs-worst" in c.settings[0])  # one that needs no plan
    found = choices.measure(choice, iterations=1, turns=1)
    assert found.predicted == 2 / 12
    assert found.measured > 0


def test_history_says_all_that_its_table_shows() -> None:
    rows = yaml.safe_load((HERE / "history.yaml").read_text(encoding="utf-8"))
    for row in rows:
        assert {key for key, value in row.items() if value} == {"date", "what", "predicted", "measured", "kept", "by"}
        assert isinstance(row["kept"], str)
    assert [row["date"] for row in rows] == sorted(row["date"] for row in rows)
