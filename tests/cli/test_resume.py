"""`dgpo train --resume`, with and without `auto`, in every place of the command line; and what changed settings say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import dgpo_cli.launch as launching
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_schemas.sealing import sealed_text

Run = Callable[..., Any]
Write = Callable[..., Path]
TOY = Path("runs/toy")
BEFORE = (
    "the previous run was killed before its first checkpoint; its logs are in runs/toy/before-1, and it starts over"
)


def iterations() -> list[int]:
    return [json.loads(line)["iteration"] for line in (TOY / "metrics.jsonl").read_text().splitlines()]


def reported() -> list[tuple[int, str, Any, Any]]:
    record = json.loads((TOY / "run.json").read_text())
    return [(one["iteration"], one["key"], one["was"], one["now"]) for one in record["changes"]]


@pytest.mark.parametrize(
    ("words", "auto"),
    [
        (["--resume", "run.yaml"], False),
        (["run.yaml", "--resume"], False),
        (["--resume", "--quiet", "run.yaml"], False),
        (["run.yaml", "--resume", "--set", "run.seed=3"], False),
        (["--resume=must", "run.yaml"], False),
        (["--resume", "--", "run.yaml"], False),
        (["--resume", "auto", "run.yaml"], True),
        (["--resume=auto", "run.yaml"], True),
        (["run.yaml", "--resume", "auto"], True),
        (["run.yaml", "--resume=auto", "--quiet"], True),
        (["--quiet", "--resume", "auto", "--", "run.yaml"], True),
        (["--resume", "auto", "--resume", "run.yaml"], False),  # the last one holds, as of every option
        (["--resume", "--resume", "auto", "run.yaml"], True),
    ],
)
def test_every_way_of_writing_it(dgpo: Run, write_run: Write, words: Sequence[str], auto: bool) -> None:
    write_run()
    done = dgpo("train", "--max-iterations", 1, *words)
    if auto:
        assert (done.code, iterations()) == (0, [1])
    else:
        assert done.code == 2
        assert "runs/toy: nothing to resume here" in done.err


@pytest.mark.parametrize(
    "words",
    [["--resume=", "run.yaml"], ["--resume=atuo", "run.yaml"], ["run.yaml", "--resume", "atuo"], ["--resume", "auto"]],
)
def test_what_is_no_way_of_writing_it(dgpo: Run, write_run: Write, words: Sequence[str]) -> None:
    write_run()
    done = dgpo("train", *words)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert not TOY.exists()


def test_a_run_file_may_be_called_auto(dgpo: Run, write_run: Write) -> None:
    write_run("auto")
    assert dgpo("train", "--resume", "auto", "auto", "--max-iterations", 1).code == 0
    assert dgpo("train", "auto", "--resume", "--max-iterations", 1).code == 0
    assert dgpo("train", "auto", "--resume", "auto", "--max-iterations", 1).code == 0
    assert iterations() == [1, 2, 3]


def test_help_teaches_it(dgpo: Run) -> None:
    text = " ".join(dgpo("train", "--help").out.split())
    assert "--resume [auto]" in text
    assert "--resume auto: start the run if it has none" in text
    assert "dgpo train run.yaml --resume auto" in text


def test_the_same_command_line_from_the_first_start_to_after_the_end(dgpo: Run, write_run: Write) -> None:
    command = ["train", write_run(), "--resume", "auto", "--max-iterations", 3]
    first, second, third = (dgpo(*command) for _ in range(3))
    assert [done.code for done in (first, second, third)] == [0, 0, 0]
    assert first.err.startswith("training runs/toy for 4 iterations")
    assert second.err.startswith("resuming after iteration 3 of runs/toy")
    assert "the run already ended after iteration 4; nothing is left to train" in third.err.splitlines()
    assert iterations() == [1, 2, 3, 4]
    assert dgpo("train", "run.yaml", "--resume").code == 0  # as ever


def test_logs_without_a_checkpoint_are_set_aside(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file, "--max-iterations", 1)
    before = (TOY / "metrics.jsonl").read_bytes()
    shutil.rmtree(TOY / "checkpoints")
    for arguments in ([], ["--resume"]):
        done = dgpo("train", file, *arguments)
        assert (done.code, done.out) == (2, "")
        assert "--resume auto, which moves the logs aside" in done.err
        assert (TOY / "metrics.jsonl").read_bytes() == before
    done = dgpo("train", file, "--resume", "auto")
    assert (done.code, iterations()) == (0, [1, 2, 3, 4])
    assert BEFORE in done.err.splitlines()
    assert (TOY / "before-1/metrics.jsonl").read_bytes() == before
    assert dgpo("report", TOY).code == 0


def test_a_run_in_use_is_left_alone(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file, "--max-iterations", 1)
    holder = RunDirectory(TOY)
    holder.acquire()
    try:
        done = dgpo("train", file, "--resume", "auto")
    finally:
        holder.release()
    assert done.code == 2
    assert "runs/toy is in use by another process" in done.err
    assert iterations() == [1]


def test_auto_goes_with_the_other_options(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    assert dgpo("train", file, "--resume", "auto", "--dry-run").code == 0
    assert not TOY.exists()
    Path("more.yaml").write_text(yaml.safe_dump({"rollout": {"micro_batch": 4}}))
    common = [
        "--resume",
        "auto",
        "--accept",
        "base",
        "--accept",
        "logs",
        "--preset",
        "more.yaml",
        "--max-iterations",
        1,
    ]
    assert dgpo("train", file, *common).code == 0
    assert dgpo("train", file, *common).code == 0
    assert dgpo("train", TOY / "config.yaml", "--resume", "auto", "--max-iterations", 1).code == 0
    assert iterations() == [1, 2, 3]
    assert reported() == []


@pytest.mark.parametrize(
    ("words", "passed"),
    [(["--resume", "auto"], ["--resume=auto"]), (["--resume"], ["--resume=must"]), ([], [])],
)
def test_processes_are_given_what_was_asked_for(
    dgpo: Run, write_run: Write, monkeypatch: pytest.MonkeyPatch, words: list[str], passed: list[str]
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(launching, "launch", lambda layout, command: seen.append(list(command)) or 0)
    assert dgpo("train", write_run(), "--processes", 2, "--set", "run.seed=3", *words).code == 0
    assert [word for word in seen[0] if word.startswith("--resume")] == passed


def test_a_changed_setting_is_reported_and_recorded(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file, "--max-iterations", 2)
    change = ["--set", "optimizer.learning_rate=1e-3", "--set", "checkpoints.every=2"]
    done = dgpo("train", file, "--resume", *change, "--max-iterations", 1)
    assert done.code == 0
    assert (
        "settings changed after iteration 2: optimizer.learning_rate 0.01 -> 0.001; checkpoints.every 1 -> 2"
        in done.err.splitlines()
    )
    assert reported() == [(2, "optimizer.learning_rate", 0.01, 0.001), (2, "checkpoints.every", 1, 2)]
    assert yaml.safe_load((TOY / "config.yaml").read_text())["optimizer"]["learning_rate"] == 1e-3
    done = dgpo("train", TOY / "config.yaml", "--resume")  # as it is now
    assert (done.code, "settings changed" in done.err) == (0, False)
    assert len(reported()) == 2
    line = "after iteration 2: optimizer.learning_rate 0.01 -> 0.001; checkpoints.every 1 -> 2"
    assert f"settings changed {line} (run.json)" in " ".join(dgpo("doctor", TOY).out.split())
    assert dgpo("report", TOY).code == 0
    assert line.replace(">", "&gt;") in (TOY / "report.html").read_text()
    for command in ("evaluate", "sample", "export"):
        assert dgpo(command, TOY).code == 0, command


def test_a_refused_change_says_the_way_on(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file, "--max-iterations", 1)
    changes = ["rollout.group_size=8", "backbone.lora.rank=2", "optimizer.learning_rate=1", "rewards.0.weight=2"]
    done = dgpo("train", file, "--resume", "auto", *(word for one in changes for word in ("--set", one)))
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert lines[1:4] == [
        "  backbone.lora.rank: 4 when it started, 2 now",
        "  rollout.group_size: 4 when it started, 8 now",
        "  rewards.0.weight: 1.0 when it started, 2.0 now",
    ]
    assert "runs/toy/config.yaml" in lines[4]
    assert "run.name" in lines[4]
    assert "optimizer.{learning_rate, " in lines[4]
    assert iterations() == [1]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("rewards.0.weight=1e300", "at most 1e+09"),
        ("rewards.0.weight=5e-324", "0 or at least 1e-30"),
        ("optimizer.learning_rate=1e30", "at most 1000"),
        ("rollout.shift=1e300", "at most 1000"),
        ("rollout.guidance=1e30", "at most 1000"),
        ("objective.kl=1e308", "at most 1e+06"),
        ("rollout.group_size=1000000000", "at most 10000"),
        ("rollout.groups=1000000000", "at most 100000"),
        ("rollout.resolution=1000000000", "at most 16384"),
        ("rollout.steps=1000000", "at most 1000"),
        ("run.iterations=1000000000000000000", "at most 1000000000"),
        ("run.process_timeout=.inf", "run.process_timeout"),
        ("optimizer.betas=[1, 0.9]", "less than 1"),
        ("advantages.epsilon=0", "greater than 0"),
    ],
)
def test_absurd_numbers(dgpo: Run, write_run: Write, setting: str, says: str) -> None:
    done = dgpo("train", write_run(), "--set", setting)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert setting.partition("=")[0] in done.err
    assert not TOY.exists()


def test_a_run_that_was_accepted_has_a_way_on_when_bounds_came_later(dgpo: Run, write_run: Write) -> None:
    write_run()
    assert dgpo("train", "run.yaml", "--max-iterations", 1).code == 0
    own = TOY / "config.yaml"
    text = own.read_text().partition("\n")[2]
    assert "  weight: 1.0\n" in text
    own.write_text(sealed_text(text.replace("  weight: 1.0\n", "  weight: 1.0e+20\n")))
    for words in (["train", own, "--resume"], ["report", TOY, "--output", "r.html"], ["doctor", TOY]):
        done = dgpo(*words)
        assert (done.code, done.out) == (2, "")
        assert re.search(rf"^{own}:\d+: rewards.0.weight: must be at most 1e\+09", done.err)
        assert "delete its first line (its SHA-256)" in done.err
    refused = dgpo("train", own, "--resume", "--set", "rewards.0.weight=1", "--set", "run.iterations=0")
    assert "first line" not in refused.err  # the mistake is on the command line
    own.write_text(text)
    assert dgpo("train", own, "--resume", "--max-iterations", 1).code == 0
