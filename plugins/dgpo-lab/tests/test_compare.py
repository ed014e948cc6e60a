"""`dgpo compare`: paired differences by hand, and every format."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgpo_kit.toy import run_data
from dgpo_lab.comparison.comparing import difference, rows
from dgpo_lab.comparison.formats import FORMATS, render
from dgpo_lab.comparison.reading import Entry, Score, distinct, read_entry
from dgpo_schemas.metrics import EvaluationRecord, PromptScores, RewardScores
from dgpo_schemas.run import RunConfig
from dgpo_schemas.suites import FileRecord, JudgeRecord, SuiteRecord, SuiteScore

Run = Callable[..., Any]
FILES = [FileRecord(name="prompts.jsonl", digest="0")]
JUDGE: dict[str, Any] = {"form": "soft-tifa", "urls": ["http://one:8000"], "timeout": 60.0, "seed": 0}


def suite(value: float, shift: float = 0.0, digest: str = "d", iteration: int = 4, **more: Any) -> SuiteRecord:
    draws = (np.random.default_rng(0).normal(0.5, 0.1, 200) + shift).tolist()
    return SuiteRecord(
        suite="geneval", distribution="dgpo-geneval 1", options=more.pop("options", {}), target="ema weights",
        model="ema", iteration=iteration, prompts=9, samples_per_prompt=4, digest=digest, files=FILES,
        sampling={"seed": 0, "steps": 20, "guidance": 4.5} | more.pop("sampling", {}),
        scores={"overall": SuiteScore(value=value, low=value - 0.1, high=value + 0.1)},
        rewards={
            "r": JudgeRecord(
                use="judge", options=JUDGE | more.pop("judge", {}), missing=more.pop("missing", 0),
                provenance={"model": "lamp", "root": "/models/lamp"} | more.pop("provenance", {}),
            )
        },
        not_comparable=more.pop("not_comparable", []), resampled={"overall": draws},
    )  # fmt: skip


def run_directory(
    path: Path, values: Sequence[float | None], prompts: Sequence[str] | None = None, record: SuiteRecord | None = None
) -> Path:
    """A run with an evaluation of one reward, per prompt, and a suite."""
    (path / "scores").mkdir(parents=True)
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known)
    lines = [
        EvaluationRecord(
            iteration=iteration, model="ema", reward=name, role=role, value=mean, low=mean - 0.1, high=mean + 0.1,
            n=len(values), missing=values.count(None), groups={},
        )
        for iteration in (0, 4)
        for name, role in (("bright", "target"), ("diversity", "statistic"))
    ]  # fmt: skip
    (path / "evaluations.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    names = list(prompts or [f"p{i}" for i in range(len(values))])
    scores = PromptScores(
        iteration=4, model="ema", prompts=names,
        rewards={"bright": RewardScores(tasks=["all"] * len(names), values=list(values))},
    )  # fmt: skip
    (path / "scores" / "000004.json").write_text(scores.model_dump_json())
    if record is not None:
        (path / "suites").mkdir()
        (path / "suites" / "000004-ema-geneval.json").write_text(record.model_dump_json())
    return path


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two runs on the same prompts: the second is better by 0.25 on every one."""
    values = [0.0, 0.25, 0.5, 0.75, 0.125, 0.375]
    first = run_directory(tmp_path / "one", values, record=suite(0.5, not_comparable=["another judge"]))
    second = run_directory(tmp_path / "two", [v + 0.25 for v in values], record=suite(0.53, 0.03, missing=3))
    return [first, second]


def test_differences_on_the_same_prompts_are_paired(pair: list[Path]) -> None:
    found = {(row.suite, row.run): row for row in rows([read_entry(path) for path in pair])}
    bright = found["held-out prompts", "two"].difference
    assert bright is not None
    assert (bright.value, bright.low, bright.high) == pytest.approx((0.25, 0.25, 0.25)), "the same on every prompt"
    geneval = found["geneval", "two"].difference
    assert geneval is not None
    assert (geneval.value, geneval.low, geneval.high) == pytest.approx((0.03, 0.03, 0.03)), "of the same resamples"
    assert found["geneval", "one"].difference is None


def test_the_iteration_of_an_evaluation_is_told(pair: list[Path]) -> None:
    entries = [read_entry(path) for path in pair]
    found = list(rows(entries))
    for how in ("markdown", "html"):
        assert f"two: {pair[1]}, held-out prompts after iteration 4" in render(entries, found, how)
    assert [run["iteration"] for run in json.loads(render(entries, found, "json"))["runs"]] == [4, 4]


def test_intervals_of_differences_are_those_of_another_bootstrap() -> None:
    generator = np.random.default_rng(1)
    one, two = generator.normal(0, 1, 400), generator.normal(0.1, 1, 400)
    base, other = (
        Score(float(v.mean()), None, None, 0, {"prompts": 1}, per_prompt=v, tasks=["all"] * 400) for v in (one, two)
    )
    found = difference(other, base)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * (two - one).std() / 20
    assert found.value == pytest.approx((two - one).mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.1 * half)


def test_differences_on_other_prompts_have_no_interval(tmp_path: Path) -> None:
    first = run_directory(tmp_path / "one", [0.0, 1.0], record=suite(0.5))
    second = run_directory(tmp_path / "two", [1.0, 1.0], ["q0", "q1"], record=suite(0.5, digest="other"))
    entries = [read_entry(first), read_entry(second)]
    found = [row.difference for row in rows(entries) if row.run == "two"]
    assert [(d.value, d.paired) for d in found if d] == [(0.5, False), (0.0, False)]
    assert "+0.500 (other prompts)" in render(entries, list(rows(entries)), "table")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"provenance": {"root": "/models/torch"}}, "judge"),
        ({"judge": {"form": "vqascore"}}, "judge"),
        ({"judge": {"seed": 1}}, "judge"),
        ({"judge": {"urls": ["http://two:8000"], "timeout": 5.0}}, None),
        ({"sampling": {"steps": 10}}, "sampling"),
        ({"sampling": {"seed": 1}}, None),
        ({"options": {"language": "zh", "file": "there/prompts.jsonl"}}, "settings"),
        ({"options": {"language": "en", "file": "there/prompts.jsonl"}}, None),
        ({"digest": "other", "provenance": {"root": "/models/torch"}}, "prompts"),
    ],
)
def test_scores_of_a_suite_are_paired_if_they_measure_the_same(
    tmp_path: Path, change: dict[str, Any], differs: str | None
) -> None:
    options = {"options": {"language": "en", "file": "here/prompts.jsonl"}}
    for name, record in (("one", suite(0.5, **options)), ("two", suite(0.6, 0.1, **options | change))):
        (tmp_path / f"{name}.json").write_text(record.model_dump_json())
    entries = [read_entry(tmp_path / "one.json"), read_entry(tmp_path / "two.json")]
    found = [row.difference for row in rows(entries)][1]
    assert found is not None
    assert (found.paired, found.other) == (differs is None, differs)
    assert ("[+0.100, +0.100]*" if differs is None else f"(other {differs})") in render(
        entries, list(rows(entries)), "table"
    )


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, None),
        ({"rewards": [{"use": "brightness", "name": "bright", "options": {"scale": 0.5}}]}, "judge"),
        ({"rewards": [{"use": "darkness", "name": "bright"}]}, "judge"),
        ({"evaluation": {"steps": 7}}, "sampling"),
        ({"run": {"name": "another", "seed": 3, "iterations": 4}}, None),
    ],
)
def test_evaluations_are_paired_if_they_measure_the_same(
    pair: list[Path], change: dict[str, Any], differs: str | None
) -> None:
    plain = run_data(pair[0]) | {"rewards": [{"use": "brightness", "name": "bright"}]}
    for path, data in zip(pair, (plain, plain | change), strict=True):
        (path / "config.yaml").write_text(json.dumps(RunConfig.model_validate(data).model_dump(mode="json")))
    found = {(row.suite, row.run): row for row in rows([read_entry(path) for path in pair])}
    bright = found["held-out prompts", "two"].difference
    assert bright is not None
    assert (bright.paired, bright.other) == (differs is None, differs)


def test_runs_that_scored_no_prompt_in_common_are_not_paired(tmp_path: Path) -> None:
    first = run_directory(tmp_path / "one", [0.0, None])
    second = run_directory(tmp_path / "two", [None, 0.5])
    entries = [read_entry(first), read_entry(second)]
    found = [row.difference for row in rows(entries)][1]
    assert found is not None
    assert (found.value, found.paired, found.other) == (0.5, False, None)
    assert "+0.500 (not paired)" in render(entries, list(rows(entries)), "table")


def test_the_newest_record_of_a_suite_counts(pair: list[Path]) -> None:
    (pair[0] / "suites" / "000009-ema-geneval.json").write_text(suite(0.75, iteration=9).model_dump_json())
    assert read_entry(pair[0]).scores["geneval", "overall"].value == 0.75


def test_the_table_fits_a_terminal(pair: list[Path], tmp_path: Path, dgpo: Run) -> None:
    long = pair[0].rename(tmp_path / ("a-run-with-a-name-that-is-very-long-" * 3))
    done = dgpo("compare", long, pair[1])
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert max(map(len, lines[:6])) <= 80
    assert lines[0] == "held-out prompts: bright"
    assert "0.583" in lines[2]
    assert "+0.250 [+0.250, +0.250]*" in lines[2]
    assert "geneval, two: 3 samples could not be scored" in done.out
    assert "not comparable with published scores: another" in " ".join(done.out.split())
    assert "diversity" not in done.out


def test_every_format_says_the_same(pair: list[Path], tmp_path: Path, dgpo: Run) -> None:
    for ending in ("md", "csv", "json", "html"):
        assert dgpo("compare", *pair, "--output", tmp_path / f"t.{ending}").out == f"{tmp_path}/t.{ending}\n"
    cells = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    assert [(row["suite"], row["run"]) for row in cells] == [
        (name, run) for name in ("held-out prompts", "geneval") for run in ("one", "two")
    ]
    assert float(cells[1]["difference_low"]) == pytest.approx(0.25)
    data = json.loads((tmp_path / "t.json").read_text())
    assert data["scores"][3]["difference"]["high"] == pytest.approx(0.03)
    assert data["scores"][2]["not_comparable"] == ["another judge"]
    markdown = (tmp_path / "t.md").read_text()
    assert "| geneval: overall | one | 0.500 | 0.400 to 0.600 |  |" in markdown
    page = (tmp_path / "t.html").read_text()
    assert "<td>geneval: overall</td><td>one</td><td>0.500</td>" in page
    assert "<script" not in page
    assert set(FORMATS) == {"table", "markdown", "csv", "json", "html"}


def test_names_in_pages_are_text() -> None:
    entry = Entry("<b>", "x", {("s", "a|b"): Score(0.5, 0.4, 0.6, 0)})
    found = list(rows([entry]))
    assert "&lt;b&gt;" in render([entry], found, "html")
    assert "s: a\\|b" in render([entry], found, "markdown")


def test_files_of_evaluations_are_compared_too(pair: list[Path], tmp_path: Path, dgpo: Run) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps({"target": "base", "suites": [suite(0.4).model_dump(mode="json")], "samples": {}}))
    out = dgpo("compare", path, pair[0], "--format", "json").out
    found = {(row["suite"], row["run"]): row for row in json.loads(out)["scores"]}
    assert found["geneval", "one"]["difference"]["value"] == pytest.approx(0.1)
    assert found["held-out prompts", "base"]["value"] is None
    assert found["held-out prompts", "one"]["difference"] is None


def test_labels_differ() -> None:
    entries = [Entry("a", "x/a", {}), Entry("a", "y/a", {}), Entry("b", "b", {})]
    assert [entry.label for entry in distinct(entries)] == ["x/a", "y/a", "b"]


def test_mistakes_are_one_message(tmp_path: Path, dgpo: Run) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    for path, message in (
        ("empty", "has no evaluation and no suites"),
        ("absent", "cannot be read: No such file"),
        ("x.json", "neither a run directory nor a file of"),
    ):
        done = dgpo("compare", tmp_path / path)
        assert (done.code, done.out) == (2, "")
        assert message in done.err
    assert "give --format" in dgpo("compare", tmp_path / "x.json", "--output", tmp_path / "a.pdf").err
