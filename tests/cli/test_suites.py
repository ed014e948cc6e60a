"""`dgpo evaluate --suite`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_cli.suites import suite_lines
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.suites import JudgeRecord, SuiteRecord
from tests.suited import SuitePlugin

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def suite(known: Registry) -> None:
    known.register(SuitePlugin(), distribution="toy-suite", version="1.5")


def test_the_table_has_the_tasks_and_what_they_depend_on(dgpo: Run, trained: Any) -> None:
    done = dgpo("evaluate", trained.path, "--suite", "toy-suite", "--output", "out.json")
    assert (done.code, done.err) == (0, "")
    kept = SuiteRecord.model_validate_json((trained.path / "suites" / "000004-ema-toy-suite.json").read_text())
    written = json.loads(Path("out.json").read_text())
    assert written["suites"] == [kept.model_dump(mode="json")]
    samples = written["samples"]["toy-suite"]
    assert len(samples) == 12
    by_task = {
        task: [line["light"]["value"] for i, line in enumerate(samples) if i // 2 % 3 == place]
        for place, task in enumerate(("one", "two", "three"))
    }
    means = {task: sum(values) / 4 for task, values in by_task.items()}
    assert {name: score.value for name, score in kept.scores.items()} == pytest.approx(
        {"overall": sum(means.values()) / 3, **means}, abs=1e-12
    )
    lines = done.out.splitlines()
    assert lines[0] == "ema weights of runs/toy after iteration 4"
    assert f"{means['one']:.3f}" in next(line for line in lines if " one " in line)
    assert lines[-2].startswith("6 prompts x 2 samples; suite of toy-suite 1.5; prompts ")
    assert lines[-1] == "judge light: brightness"
    assert kept.not_comparable == []
    assert kept.sampling == {"seed": 3, "steps": 3, "guidance": 1.0}


@pytest.mark.parametrize("kind", ["reward", "detector"])
def test_what_a_reward_is_made_of_is_named(kind: str) -> None:
    judge = JudgeRecord(
        use="outer", options={kind: {"use": "inner", "options": {}}}, missing=0,
        provenance={"checkpoint": "owner/name", "revision": "0123", "overlap": None},
    )  # fmt: skip
    record = SuiteRecord(
        suite="s", distribution="d 1", options={}, target="t", model="", iteration=None, prompts=1,
        samples_per_prompt=1, digest="0" * 64, files=[], sampling={}, scores={}, rewards={"x": judge},
        not_comparable=[], resampled={},
    )  # fmt: skip
    assert list(suite_lines(record))[1] == f"judge x: outer, checkpoint owner/name, revision 0123, {kind} inner"


def test_a_base_model_of_a_run_file_is_evaluated_and_nothing_is_kept(dgpo: Run, trained: Any) -> None:
    base = dgpo("evaluate", trained.file, "--suite", "toy-suite", "--json")
    same = dgpo("evaluate", trained.path, "--model", "base", "--suite", "toy-suite", "--json")
    (record,), (other,) = json.loads(base.out), json.loads(same.out)
    assert record["scores"] == other["scores"]
    assert "resampled" not in record
    assert not trained.file.with_name("suites").exists()
    assert (trained.path / "suites" / "000000-base-toy-suite.json").is_file()


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_scores_do_not_depend_on_the_micro_batch(dgpo: Run, trained: Any, micro_batch: int) -> None:
    outs = [
        json.loads(dgpo("evaluate", trained.path, "--suite", "toy-suite", "--micro-batch", n, "--json").out)[0]
        for n in (12, micro_batch)
    ]
    values = [{name: score["value"] for name, score in out["scores"].items()} for out in outs]
    assert values[0] == pytest.approx(values[1], abs=1e-6)


def test_deviations_and_missing_samples_are_said(dgpo: Run, trained: Any) -> None:
    options = ["--suite-option", "toy-suite.scale=0.99", "--suite-option", "toy-suite.fail=dark"]
    done = dgpo("evaluate", trained.path, "--suite", "toy-suite", *options, "-n", 4, "--limit", 5, "--model", "base")
    assert re.search(r"^light: \d+ of 20 samples could not be scored$", done.out, re.MULTILINE)
    assert "not comparable with published scores: 4 samples per prompt instead of 2" in done.out
    assert "not comparable with published scores: only 5 of its prompts were used" in done.out
    assert "not comparable with published scores: the scale of brightness is not 1" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "toy-suit"], "unknown suite 'toy-suit'; did you mean toy-suite?"),
        (["--suite", "toy-suite", "--suite-option", "scale=1"], "--suite-option scale=1: must be NAME.KEY=VALUE"),
        (["--suite-option", "toy-suite.scale=1"], "must be NAME.KEY=VALUE with the name of a suite that --suite gives"),
        (["--suite", "toy-suite", "--suite-option", "toy-suite.scale=-1"], "suite toy-suite: options.scale: "),
        (["--suite", "toy-suite", "--suite-option", "toy-suite.scal=1"], "did you mean scale?"),
        (["--suite", "toy-suite", "--prompts", "run.yaml"], "run.yaml"),
    ],
)
def test_mistakes_are_one_message(dgpo: Run, trained: Any, arguments: list[str], message: str) -> None:
    done = dgpo("evaluate", trained.path, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
