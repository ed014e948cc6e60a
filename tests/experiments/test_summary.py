"""The summary sorts the changes of all records by the verdicts on them, on made-up records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.results import compare
from dgpo_lab.ablation.traces import Trace
from experiments.record import Record
from experiments.summary import Summary, write_summary

NOISE = (-0.012, 0.004, 0.011, -0.006, 0.009, -0.003, 0.002, -0.008, 0.001, -0.002)


def record(effects: dict[str, float], seconds: dict[str, float] | None = None, seeds: int = 10) -> Record:
    """Seeds with an effect for each variant, reached linearly; `seconds` of an iteration, by default 1."""
    price = {name: (seconds or {}).get(name, 1.0) for name in ("dgpo", *effects)}
    traces = [
        Trace(variant=name, seed=seed, state=State("finished"), ended_by="iterations", iterations=[0, 10, 20],
              scores=[0.3, 0.4 + effect / 2, 0.5 + effect + (noise if name != "dgpo" else 0)],
              seconds=[0.0, 10 * price[name], 20 * price[name]], samples=[0, 100, 200])
        for name, effect in {"dgpo": 0.0, **effects}.items()
        for seed, noise in enumerate(NOISE[:seeds])
    ]  # fmt: skip
    named = {name: {"change": name} for name in dict.fromkeys(trace.variant for trace in traces)}
    results = compare(named, traces, reward="score", baseline="dgpo", target=0.4)
    return Record(False, {}, {name: [f"key: {name}"] for name in named}, results, [], [], [])


@pytest.fixture
def summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Summary:
    records = {
        "e5": record({"up": 0.1, "down": -0.05, "same": 0.0}),
        "e10": record({"slow": 0.04, "quick": 0.0}, {"slow": 2.0, "quick": 0.8}),
    }
    for key in records:
        (tmp_path / key).mkdir()
        (tmp_path / key / "record.json").touch()
    monkeypatch.setattr("experiments.summary.load", lambda path: records[path.parent.name])
    return Summary(tmp_path)


def names(summary: Summary, kind: str) -> list[str]:
    return [line.contrast.name for line in summary.lines(kind)]  # type: ignore[arg-type]


def test_changes_are_sorted_by_verdict_and_size(summary: Summary) -> None:
    """At equal samples, except those of E10: what is better with more time is judged at equal seconds."""
    assert names(summary, "better") == ["up", "quick"]
    assert names(summary, "worse") == ["slow", "down"]
    assert names(summary, "equivalent") == ["same"]
    assert names(summary, "undecided") == []
    assert summary.lines("better")[0].text().startswith("[E5](e5.md): `up` instead of `dgpo`: +0.100 [+0.09")
    assert summary.lines("worse")[0].text().endswith("at equal seconds")
    assert summary.seeds == (10, 10)


def test_a_change_of_two_experiments_is_that_with_more_seeds(
    summary: Summary, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever they call it. The same change at equal seconds is another one."""
    renamed = record({"more": 0.1, "fewer": 0.02}, seeds=9)
    renamed.settings["more"], renamed.settings["fewer"] = ["key: up"], ["key: slow"]
    records = {**summary.records, "e3": renamed}
    monkeypatch.setattr("experiments.summary.load", lambda path: records[path.parent.name])
    (tmp_path / "e3").mkdir()
    (tmp_path / "e3" / "record.json").touch()
    again = Summary(tmp_path)
    assert names(again, "better") == ["up", "quick", "fewer"]
    assert names(again, "worse") == ["slow", "down"]


def test_what_the_standard_miniature_says_stands_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In `Use` is only what is better in both; a difference of the other sign confirms nothing."""
    records = {
        "confirm-fast": record({"both": 0.1, "here": 0.1, "turned": 0.1, "untried": 0.1, "worse": -0.1}),
        "confirm": record({"both": 0.05, "here": 0.0, "turned": -0.05, "worse": -0.05}, seeds=8),
    }
    for key in records:
        (tmp_path / key).mkdir()
        (tmp_path / key / "record.json").touch()
    monkeypatch.setattr("experiments.summary.load", lambda path: records[path.parent.name])
    lines = {line.contrast.name: line for line in Summary(tmp_path).lines("better") + Summary(tmp_path).lines("worse")}
    assert [name for name, line in lines.items() if line.confirmed] == ["both", "worse"]
    assert lines["untried"].standard is None
    assert re.search(r"; in the standard miniature \+0\.05\d .*, a difference \(8 seeds\)$", lines["both"].text())
    assert [line.contrast.name for line in Summary(tmp_path).reversed] == ["turned"]
    use, rest = write_summary(tmp_path).read_text().split("## Better in the fast miniature, not confirmed")
    assert "`both`" in use
    assert not any(f"`{name}`" in use for name in ("here", "turned", "untried"))
    assert all(f"`{name}`" in rest for name in ("here", "turned", "untried", "worse"))


def test_the_page_lists_every_change_once(summary: Summary, tmp_path: Path) -> None:
    text = write_summary(tmp_path).read_text()
    for name in ("up", "down", "same", "slow", "quick"):
        assert text.count(f"`{name}`") == 1
    assert "- Nothing is left open." in text
    assert "{{" not in text
    assert "\n\n\n" not in text


def test_without_verdicts_there_is_no_page(tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text("old")
    assert not write_summary(tmp_path).is_file()
