"""The session on a GPU: its runner, what it carries along, and a dry run of all its steps."""

from __future__ import annotations

import json
import math
import os
import random
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from packaging.requirements import Requirement

from benchmarks import record, wheels
from benchmarks.__main__ import main
from benchmarks.page import write_page
from benchmarks.session import hardware, installing, runner
from benchmarks.session.cases import CASES, configuration
from benchmarks.session.command import count
from benchmarks.session.runner import run_steps
from benchmarks.session.steps import STEPS, TOTAL, Row, Session, Step
from benchmarks.session.timers import _covered
from benchmarks.session.training import tiny_checkpoint

HERE = "tests.benchmarks.session_steps"
SETTINGS: dict[str, Any] = {"device": "cpu", "tiny": True, "directory": ".", "counts": {}}


def test_limits_fit_the_session() -> None:
    assert sum(step.seconds for step in STEPS) == TOTAL == 540
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_published_sizes() -> None:
    for name, case in CASES.items():
        config = configuration(case, Path("x"), iterations=1)
        assert (config.rollout.groups, config.timesteps.count) == (1, 1)
        assert config.backbone.lora.rank == 64 or "wan" in name
    published = configuration(CASES["sd3.5-m 512, whole groups"], Path("x"), iterations=1)
    assert (published.rollout.group_size, published.optimizer.micro_batch) == (24, 24)
    assert published.backbone.lora.targets is not None, "the published ones, not every projection"


class Canned:
    """A worker that answers from a list; each answer takes the time that its step is named after."""

    answers: Iterator[dict[str, Any]]
    asked: list[tuple[str, float]]
    started = 0

    def __init__(self, settings: Any) -> None:
        type(self).started += 1
        self.process = self.connection = self

    def ask(self, step: Step, found: Any, seconds: float) -> dict[str, Any]:
        self.asked.append((step.name, seconds))
        return next(self.answers)

    def goes_on(self) -> bool:
        return True

    def send(self, message: object) -> None:
        assert message is None

    def join(self, seconds: float) -> None: ...

    def end(self) -> None: ...


def test_the_runner_goes_on_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.0, 240.0, 240.0, 241.0, 241.0, 268.0, 268.0])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    monkeypatch.setattr(runner, "_Worker", Canned)
    Canned.started, Canned.asked = 0, []
    done = {"status": "done", "rows": [Row("x", 2.0, bound=1.0).plain()]}
    Canned.answers = iter([{"status": "timed out"}, {"status": "failed", "error": "ValueError: no\nmore"}, done])
    steps = [Step(name, 108, "") for name in ("first", "second", "third", "fourth")]
    said: list[str] = []
    file = tmp_path / "deep" / "gpu.json"
    found = run_steps(steps, SETTINGS, file, started=100.0, total=170.0, say=said.append)
    assert json.loads(file.read_text()) == found
    assert [one["status"] for one in found["steps"].values()] == ["timed out", "failed", "done", "left out"]
    assert Canned.asked == [("first", 34.0), ("second", 30.0), ("third", 29.0)], "in proportion, and what is left"
    assert Canned.started == 2, "a worker that overran is replaced"
    assert "ValueError: no" in said[1]
    assert "more" not in said[1]
    assert said[2].endswith("beyond its bound: x")


def test_the_record_is_written_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_Worker", Canned)
    Canned.asked, Canned.answers = [], iter([{"status": "done", "rows": []}])  # and none for the second
    with pytest.raises(StopIteration):
        run_steps([Step("a", 9, ""), Step("b", 9, "")], SETTINGS, tmp_path / "gpu.json")
    assert list(json.loads((tmp_path / "gpu.json").read_text())["steps"]) == ["a"]


@pytest.mark.slow
def test_a_step_that_hangs_or_fails_is_left_behind(tmp_path: Path) -> None:
    """In real processes."""
    steps = [
        Step("tells", 60, f"{HERE}:tells"), Step("fails", 60, f"{HERE}:fails"), Step("hangs", 2, f"{HERE}:hangs"),
        Step("again", 60, f"{HERE}:tells"),
    ]  # fmt: skip
    found = run_steps(steps, SETTINGS | {"directory": str(tmp_path)}, tmp_path / "gpu.json")["steps"]
    assert [one["status"] for one in found.values()] == ["done", "failed", "timed out", "done"]
    child = int((tmp_path / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert found["fails"]["error"] == "ValueError: no\nsecond line"
    assert [row.get("passed") for row in found["tells"]["rows"]] == [None, None, True]
    assert found["again"]["rows"][2] == {"what": "found before", "value": 0.5, "bound": 0.0, "passed": False}


def test_nan_passes_no_bound() -> None:
    assert Row("x", math.nan, bound=1.0).plain()["passed"] is False


def test_rates_and_versions_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_asked", list)  # a machine may have nvidia-smi
    session = Session(torch.device("cpu"), True, tmp_path, {"rates": {"gemm bfloat16": 671.0}})
    assert Row("torch", torch.__version__.split("+")[0]).what in {row.what for row in hardware.versions(session)}
    rows = {row.what: row for row in hardware.rates(session)}
    assert rows[hardware.PRODUCT].ideal == 671.0
    assert all(float(row.value) > 0 for row in rows.values())


def test_busy_time_is_the_union_of_kernels() -> None:
    draws = random.Random(0)
    for _ in range(20):
        ranges = [(start, start + draws.randint(0, 9)) for start in (draws.randint(0, 50) for _ in range(8))]
        covered = {t for start, end in ranges for t in range(start, end)}
        assert _covered([(float(start), float(end)) for start, end in ranges]) == len(covered)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rate"], "there is no step 'rate'; did you mean 'rates'?"),
        (["--device", "cpu"], "--device cpu: models of published sizes need a GPU; add --tiny for a dry run"),
        (["--device", "gpu"], "--device: 'gpu' is not possible"),
        (["--write", "none.json"], "none.json: cannot be read as JSON"),
        ([], "there is no GPU that torch can use; `--device cpu --tiny` is a dry run without one"),
    ],
)
def test_what_cannot_be_done(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks", "gpu", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said.replace("; did you mean 'rates'?", ""))
    assert list(tmp_path.iterdir()) == []


def test_wheels_are_installed_and_the_program_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel made by hand: pip installs it without an index, and its module is found through PYTHONPATH."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    with zipfile.ZipFile(directory / "carried-1.0-py3-none-any.whl", "w") as wheel:
        info = "carried-1.0.dist-info"
        wheel.writestr("carried.py", "VALUE = 3\n")
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: carried\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    begun: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda program, words: begun.append(words))
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    installing.restarted_with_wheels(["gpu", "--wheels", str(directory), "--tiny"])
    (words,) = begun
    assert words[1:] == ["-m", "benchmarks", "gpu", "--wheels", str(directory), "--tiny"]
    site = Path(os.environ[installing.SITE])
    assert (site / "carried.py").is_file()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(installing.ROOT), str(site)]
    installing.restarted_with_wheels(words[3:])
    assert len(begun) == 1, "not again"


def test_without_wheels_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    installing.restarted_with_wheels(["gpu", "--tiny"])
    with pytest.raises(SystemExit) as ended:
        installing.restarted_with_wheels(["gpu", f"--wheels={tmp_path}"])
    assert ended.value.code == 2
    assert f"--wheels: there are no wheels in {tmp_path}; make them with" in capsys.readouterr().err


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_what_is_missing_is_closed_under_requirements(python: str) -> None:
    """Every requirement of what is carried is carried or present, and all that is carried is required."""
    present = {"torch", "numpy", "transformers", "scipy", "matplotlib", "peft", "accelerate"}
    found = wheels.missing(present, python)
    assert not present & found.keys()
    assert found["pydantic-core"] == distribution("pydantic-core").version
    required = set()
    for name in (*wheels.DISTRIBUTIONS, *found):
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": "", "python_version": python}):
                required.add(wheels._normal(requirement.name))
    assert required <= present | found.keys() | wheels.DISTRIBUTIONS.keys()
    assert found.keys() - {"peft"} <= required


def test_wheels_that_are_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[str, ...]] = []

    def run(*words: str, cwd: Path) -> None:
        ran.append(words)
        if "download" in words:
            (Path(words[words.index("-d") + 1]) / "large-1.whl").write_bytes(bytes(2**21))

    monkeypatch.setattr(wheels, "_run", run)
    monkeypatch.setattr(wheels, "tree_bytes", lambda: 2**20)
    assert wheels.collect(tmp_path, wheels.PRESENT) == {"large-1.whl": 2**21}
    assert sum("hatchling" in words for words in ran) == len(wheels.DISTRIBUTIONS)
    pinned = [word for word in ran[-1] if "==" in word]
    assert f"diffusers=={distribution('diffusers').version}" in pinned
    assert not any(word.startswith("torch==") for word in pinned)
    (tmp_path / "packages.txt").write_text("Diffusers==1.0\n# a comment\n", encoding="utf-8")
    monkeypatch.setattr(wheels, "LIMIT", 0)
    monkeypatch.setattr(wheels.collect, "__defaults__", (wheels.PRESENT, "3.12", 2**21))
    with pytest.raises(SystemExit) as ended:
        wheels.main([str(tmp_path), "--present", str(tmp_path / "packages.txt")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "2.0 MiB of wheels and 1.0 of the tree exceed 2 MiB (largest: large-1.whl 2.0)" in said
    assert not any(word.startswith("diffusers==") for word in ran[-1])


def test_the_page_has_the_session(tmp_path: Path) -> None:
    steps = {
        "versions": {"status": "done", "seconds": 1.0, "rows": [Row("GPU", "a card").plain()]},
        "rates": {"status": "done", "seconds": 2.0, "rows": [
            Row("product", 701.25, "TFLOP/s", ideal=671.5).plain(), Row("loss", 0.5, "relative", bound=0.1).plain(),
        ]},
        "rewards": {"status": "failed", "seconds": 3.0, "error": "ValueError: no"},
    }  # fmt: skip
    kept = record.save(tmp_path / "r.json", "gpu", {"seconds": 500.0, "total": 540.0, "steps": steps})
    text = write_page(kept, tmp_path).read_text(encoding="utf-8")
    assert "| versions | GPU | a card |  |  |" in text
    assert "| rates | product | 701.2 TFLOP/s | 671.5 |  |" in text
    assert "|  | loss | 0.5 relative |  | 0.1 **not kept** |" in text
    assert "| rewards | failed after 3 s: ValueError: no | | | |" in text
    assert "in 500 s of 540" in text


@pytest.mark.slow
def test_a_dry_run_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU with tiny models: every step is done and every check passed; passes stand beside their counts."""
    counts = count(tmp_path)
    session = {"device": "cpu", "tiny": True, "directory": str(tmp_path), "counts": counts}
    found = run_steps(STEPS, session, tmp_path / "gpu.json", total=10 * TOTAL)["steps"]
    assert {name: one.get("error") for name, one in found.items()} == dict.fromkeys(found)
    rows = {row["what"]: row for one in found.values() for row in one["rows"]}
    assert [row for row in rows.values() if row.get("passed") is False] == []
    for name in ("sd3.5-m 512", "sd3.5-m 512, whole groups", "sd3.5-m 512, exact", "sd3.5-m 1024", "wan2.1 1.3b"):
        for part in ("roll-out step", "decode", "policy pass with gradient", "its backward",
                     "training micro-batch, all passes"):  # fmt: skip
            assert rows[f"{part}, {name}"]["ideal"] > 0, (part, name)
    assert rows["halvings"]["value"] >= 1
    assert rows["graphs"]["value"] >= 1
    assert tiny_checkpoint(tmp_path).is_dir()
