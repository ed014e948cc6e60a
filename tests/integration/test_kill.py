"""Whatever ends a run, and whenever: it goes on as if nothing had happened, byte for byte.

Moments all along a run are tried by the slow tests, a few of them by the others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.storage.checkpoint import load
from dgpo_kit.toy import run_data

DRIVER = Path(__file__).with_name("driver.py")
KILLED = -signal.SIGKILL
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    output: str
    counts: dict[str, int]


class Driver:
    """Speaks to driver.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def train(self, run: Run, *options: str, at: tuple[str, int] | None = None, do: str = "kill") -> Ended:
        """`dgpo train`, a whole life."""
        return Ended(**self.ask(arguments=["train", str(run.file), *options], at=at, do=do))

    def train_until(self, run: Run, at: tuple[str, int]) -> int:
        """`dgpo train` up to a moment; the number of the process, which waits there."""
        number: int = self.ask(arguments=["train", str(run.file)], at=at, do="wait", background=True)["number"]
        return number

    def wait_for(self, number: int) -> Ended:
        """How such a process ended."""
        return Ended(**self.ask(collect=number))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


class Run:
    """A run file, and what a run of it leaves behind. Its evaluations first fall, then reach new heights."""

    def __init__(self, directory: Path, **changes: dict[str, Any]) -> None:
        sections: dict[str, dict[str, Any]] = {
            "run": {"iterations": 5},
            "rollout": {"steps": 2, "group_size": 3, "groups": 2, "micro_batch": 4},
            "timesteps": {"count": 1},
            "objective": {"ema_rollouts_after": 2},
            "optimizer": {"learning_rate": 0.03},
            "evaluation": {"every": 2, "prompts": 3, "images": 2, "model": "policy"},
            "checkpoints": {"every": 3, "keep": 1},
        }
        data = run_data(directory / "runs")
        for name in sections | changes:
            data[name] = data.get(name, {}) | sections.get(name, {}) | changes.get(name, {})
        self.path = directory / "runs" / "toy"
        self.file = directory / "run.yaml"
        self.file.write_text(yaml.safe_dump(data))

    def left(self) -> dict[str, bytes]:
        """Every file but those that tell of clocks and processes."""
        files = {str(f.relative_to(self.path)): f for f in self.path.rglob("*") if f.is_file()}
        reported = (".lock", "run.json", "timings.jsonl", "config.yaml", "clock.json")
        return {name: file.read_bytes() for name, file in sorted(files.items()) if file.name not in reported}

    def iterations(self, log: str) -> list[int]:
        """Of each line of a log."""
        return [json.loads(line)["iteration"] for line in (self.path / log).read_text().splitlines()]


@dataclass(frozen=True)
class Whole:
    """What an uninterrupted run leaves behind, and how often each moment came."""

    left: dict[str, bytes]
    counts: dict[str, int]


@pytest.fixture(scope="module")
def whole(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    run = Run(tmp_path_factory.mktemp("whole"))
    ended = driver.train(run)
    assert ended.status == 0, ended.output
    assert "Warning" not in ended.output
    assert run.iterations("metrics.jsonl") == [1, 2, 3, 4, 5]
    # One line for the reward, and one for each of three statistics of the images.
    assert run.iterations("evaluations.jsonl") == [i for i in (0, 2, 4, 5) for _ in range(4)]
    return Whole(run.left(), ended.counts)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def go_on(driver: Driver, run: Run, at: tuple[str, int] | None = None) -> Ended:
    """Resume; where there is nothing to resume from, do what the message says."""
    ended = driver.train(run, "--resume", at=at)
    if ended.status == 2:
        assert "to resume" in ended.output
        assert ended.output.endswith("start the run without --resume\n")
        assert "Traceback" not in ended.output
        ended = driver.train(run, at=at)
    return ended


def assert_as_if_nothing_had_happened(run: Run, whole: Whole, ended: Ended) -> None:
    assert ended.status == 0, ended.output
    left = run.left()
    # A run that was killed when it was about to drop an old checkpoint keeps it, whole.
    for path in {(run.path / name).parent for name in left.keys() - whole.left.keys()}:
        load(path)
    assert {name: data for name, data in left.items() if name in whole.left} == whole.left
    assert run.iterations("timings.jsonl") == sorted(set(run.iterations("timings.jsonl")))


@pytest.mark.parametrize(("moment", "n"), [("velocity", 31), ("rename", 5), ("half a line", 7)])
def test_killed_at_three_moments(driver: Driver, whole: Whole, run: Run, moment: str, n: int) -> None:
    assert n < whole.counts[moment]
    assert driver.train(run, at=(moment, n)).status == KILLED
    assert_as_if_nothing_had_happened(run, whole, go_on(driver, run))


@pytest.mark.parametrize(
    ("moment", "stride"),
    [
        ("velocity", 12),
        ("score", 7),
        ("fsync", 13),
        ("rename", 2),
        ("replace", 1),
        ("unlink", 4),
        ("append", 3),
        ("half a line", 3),
        ("half a tensor file", 3),
    ],
)
@pytest.mark.slow
def test_killed_at_any_moment(driver: Driver, whole: Whole, tmp_path: Path, moment: str, stride: int) -> None:
    total = whole.counts[moment]
    for n in range(1, total + 1, stride):
        (tmp_path / str(n)).mkdir()
        run = Run(tmp_path / str(n))
        assert driver.train(run, at=(moment, n)).status == KILLED, f"{moment} {n} of {total}"
        assert_as_if_nothing_had_happened(run, whole, go_on(driver, run))


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([("velocity", 30), ("velocity", 5)], marks=pytest.mark.slow),
        # The later ones while it cleans its logs.
        pytest.param([("velocity", 50), ("replace", 1), ("replace", 3), ("velocity", 1)], marks=pytest.mark.slow),
        [("append", 7), ("half a tensor file", 1), ("half a line", 1)],
    ],
)
def test_killed_again_and_again(driver: Driver, whole: Whole, run: Run, moments: list[tuple[str, int]]) -> None:
    for at in moments:
        assert go_on(driver, run, at).status == KILLED, at
    assert_as_if_nothing_had_happened(run, whole, go_on(driver, run))


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (("replace", 1), "nothing to resume here"),  # config.yaml
        (("velocity", 1), "no checkpoint to resume from"),
        (("half a tensor file", 1), "no checkpoint to resume from"),
        (("rename", 2), "no checkpoint to resume from"),  # the first renames images
    ],
)
def test_killed_before_the_first_checkpoint(
    driver: Driver, whole: Whole, run: Run, at: tuple[str, int], message: str
) -> None:
    assert driver.train(run, at=at).status == KILLED
    refused = driver.train(run, "--resume")
    assert refused.status == 2
    assert refused.output == f"{run.path}: {message}; start the run without --resume\n"
    assert_as_if_nothing_had_happened(run, whole, driver.train(run))


def test_killed_while_the_only_checkpoint_is_replaced(driver: Driver, tmp_path: Path) -> None:
    """Between the two renames there is no checkpoint under its name; the one that was to be replaced comes back."""
    (tmp_path / "whole").mkdir()
    changes: dict[str, dict[str, Any]] = {"evaluation": {"at_start": False}, "checkpoints": {"every": 2}}
    uninterrupted, run = Run(tmp_path / "whole", **changes), Run(tmp_path, **changes)
    assert driver.train(uninterrupted).status == 0
    # It is saved as it was before its first evaluation, and then again for being the best so far.
    assert driver.train(run, at=("evaluate", 1), do="terminate").status == PREEMPTED
    assert driver.train(run, "--resume", at=("rename", 3)).status == KILLED
    assert {p.name for p in (run.path / "checkpoints").iterdir()} == {".000002.old", ".000002.writing", "000000"}
    ended = driver.train(run, "--resume")
    assert "resuming after iteration 2" in ended.output
    assert_as_if_nothing_had_happened(run, Whole(uninterrupted.left(), {}), ended)
    assert [p.name for p in run.path.rglob(".*")] == [".lock"]


@pytest.mark.parametrize("stride", [60, pytest.param(13, marks=pytest.mark.slow)])
def test_sigterm_saves_and_stops(stride: int, driver: Driver, whole: Whole, tmp_path: Path) -> None:
    for n in range(stride // 2, whole.counts["velocity"] + 1, stride):
        (tmp_path / str(n)).mkdir()
        run = Run(tmp_path / str(n))
        ended = driver.train(run, at=("velocity", n), do="terminate")
        too_late = "finished in" in ended.output
        assert ended.status == (0 if too_late else PREEMPTED)
        if not too_late:
            done = len(run.iterations("metrics.jsonl")) if (run.path / "metrics.jsonl").exists() else 0
            assert f"stopped after iteration {done}; continue with --resume" in ended.output
            assert load(run.path / "checkpoints" / f"{done:06d}").manifest.iteration == done
        assert_as_if_nothing_had_happened(run, whole, driver.train(run, "--resume"))


def test_a_terminal_that_is_closed_is_a_stop(driver: Driver, whole: Whole, run: Run) -> None:
    ended = driver.train(run, at=("velocity", 35), do="hang up")
    assert ended.status == PREEMPTED
    assert json.loads((run.path / "outcome.json").read_text())["outcome"] == "interrupted"
    assert_as_if_nothing_had_happened(run, whole, driver.train(run, "--resume"))


@pytest.mark.parametrize(
    ("do", "options", "status"),
    [
        ("warn of the end", [], PREEMPTED),
        ("warn of the end", ["--preempted-ok"], 0),
        ("interrupt", [], 0),
    ],
)
def test_a_run_that_was_not_stopped_by_its_user_says_so(
    driver: Driver, run: Run, do: str, options: list[str], status: int
) -> None:
    ended = driver.train(run, *options, at=("velocity", 35), do=do)
    assert ended.status == status, ended.output
    assert "continue with --resume" in ended.output


@pytest.mark.parametrize(
    ("at", "do"),
    [
        (("velocity", 35), "interrupt twice"),
        (("evaluate", 2), "interrupt twice"),
        (("score", 8), "hang, interrupted twice"),  # neither does it wait for a reward that hangs
    ],
)
def test_a_second_interrupt_stops_at_once(driver: Driver, whole: Whole, run: Run, at: tuple[str, int], do: str) -> None:
    ended = driver.train(run, at=at, do=do)
    assert ended.status == 130
    assert "press Ctrl-C again to stop at once" in ended.output
    assert "Traceback" not in ended.output
    assert_as_if_nothing_had_happened(run, whole, driver.train(run, "--resume"))


def test_one_process_a_directory_until_it_is_killed(driver: Driver, whole: Whole, run: Run) -> None:
    number = driver.train_until(run, ("velocity", 30))
    for options in ([], ["--resume"]):
        refused = driver.train(run, *options)
        assert refused.status == 2
        assert refused.output == f"{run.path} is in use by another process (pid {number})\n"
    os.kill(number, signal.SIGKILL)
    assert driver.wait_for(number).status == KILLED
    assert_as_if_nothing_had_happened(run, whole, driver.train(run, "--resume"))
