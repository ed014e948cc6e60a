"""Single steps of the session under the rules of a GPU, what is timed, and which records get onto the page."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import page
from benchmarks.session import command, exactness, models, recorded, runner, timers, worker
from benchmarks.session.rewards import _on_the_default_stream
from benchmarks.session.steps import Session, Step
from benchmarks.session.timers import Launched, Timers
from dgpo_core.errors import UserError
from dgpo_core.training import handover

CUDA = torch.device("cuda", 0)


def test_rewards_share_the_stream_of_the_rollouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[Any] = []
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: ("default", device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(entered.append(stream)))
    with _on_the_default_stream(Session(CUDA, True, tmp_path)), handover.own_stream(CUDA):
        assert entered == [("default", CUDA)]


# -- the worker -------------------------------------------------------------------------------------------------------


class Line:
    """The worker's end of a connection: gives it steps, and keeps what it says."""

    def __init__(self, *steps: Step) -> None:
        self.asked: list[Any] = [*((step, {}) for step in steps), None]
        self.told: list[Any] = []

    def recv(self) -> Any:
        return self.asked.pop(0)

    def send(self, message: Any) -> None:
        self.told.append(message)


STEPS = "tests.benchmarks.session_steps"
SETTINGS = {"device": "cpu", "tiny": True, "directory": ".", "counts": {}}


@pytest.mark.parametrize("where", ["synchronize", "free"])
def test_an_error_that_stays_is_told_before_the_worker_ends(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(device: Any = None) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "choose_device", lambda name: CUDA)
    monkeypatch.setattr(torch.cuda, "synchronize", raises if where == "synchronize" else lambda device: None)
    monkeypatch.setattr(worker, "free", raises)
    line = Line(Step("fails", 1, f"{STEPS}:fails"), Step("tells", 1, f"{STEPS}:tells"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        worker.answer_steps(SETTINGS, line)  # type: ignore[arg-type]
    assert line.told == [{"status": "failed", "error": "ValueError: no\nsecond line"}]


def test_a_worker_goes_on_when_it_has_freed_what_a_step_held() -> None:
    line = Line(Step("fails", 1, f"{STEPS}:fails"), Step("tells", 1, f"{STEPS}:tells"))
    worker.answer_steps(SETTINGS, line)  # type: ignore[arg-type]
    assert [one if isinstance(one, str) else one["status"] for one in line.told] == ["failed", "freed", "done", "freed"]


@pytest.mark.parametrize("says", ["freed", None])
def test_a_worker_that_ends_after_its_answer_is_replaced(says: str | None) -> None:
    made = object.__new__(runner._Worker)
    made.connection, other = multiprocessing.Pipe()
    other.send({"status": "done", "rows": []})
    if says:
        other.send(says)
    other.close()
    assert made.connection.recv()["status"] == "done"
    assert made.goes_on() is (says is not None)
    made.connection.close()


def test_runs_beside_one_that_failed_are_ended() -> None:
    words = [[sys.executable, "-c", code] for code in ("raise SystemExit('no')", "import time; time.sleep(60)")]
    started = [("one", subprocess.Popen(one, stderr=subprocess.PIPE, text=True)) for one in words]
    with pytest.raises(RuntimeError, match="the one run: no"):
        exactness._all_end(started)
    assert [process.returncode for _, process in started] == [1, -9]


# -- what is timed ----------------------------------------------------------------------------------------------------


class Clock:
    """A run whose passes take 1 s each, and 100 s more with the profiler; it samples in two passes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, profile: int | None) -> None:
        self.now = 0.0
        self.timers = Timers(torch.device("cpu"), profile=profile)
        monkeypatch.setattr(timers.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(self.timers, "_profiling", self._profiling)
        self.profiled_in: list[int] = []
        self.backbone = SimpleNamespace(velocity=self._pass, decode_rollouts=self._pass)
        self.sampler = SimpleNamespace(sample=lambda: [self.backbone.velocity() for _ in range(2)])
        self.timers.watch(
            SimpleNamespace(sampler=self.sampler, backbone=self.backbone, policy=SimpleNamespace(backward=self._pass))  # type: ignore[arg-type]
        )

    def _pass(self) -> None:
        self.now += 1

    def _profiling(self, call: Any) -> None:
        self.now += 100
        self.profiled_in.append(self.timers._iteration)
        self.timers.profiled = Launched(1, 1.0, 1.0, 1.0)
        call()

    def run(self, iterations: int) -> Timers:
        for iteration in range(iterations):
            self.timers.on_iteration_start(iteration)
            began = self.now
            self.timers.on_phase_start("rollout")
            self.sampler.sample()
            spent = SimpleNamespace(seconds=self.now - began)
            timing: Any = SimpleNamespace(phases={"rollout": spent, "optimize": SimpleNamespace(seconds=5.0)})
            self.timers.on_iteration_end(None, timing)  # type: ignore[arg-type]
        return self.timers


@pytest.mark.parametrize("profile", [None, 1, 2])
def test_the_profiler_is_in_no_time(profile: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, profile)
    found = clock.run(3)
    assert (found.seconds("sample"), found.seconds("step"), found.seconds("rollout")) == (2.0, 1.0, 2.0)
    assert found.count("sample") == (2 if profile is None else 1)
    assert clock.profiled_in == [profile] * (profile is not None)


def test_the_profiler_has_an_iteration_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many iterations are timed as without it."""
    seen: list[Any] = []

    class Trainer:
        def __init__(self, config: Any, registry: Any, callbacks: list[Any]) -> None:
            seen.append((config.run.iterations, callbacks[0]._profile))
            raise KeyboardInterrupt

    monkeypatch.setattr(models, "Trainer", Trainer)
    for profile in (False, True):
        with pytest.raises(KeyboardInterrupt):
            models._measured(Session(torch.device("cpu"), True, tmp_path), "sd3.5-m 512", profile=profile)
    assert seen == [(3, None), (4, 3)]


# -- which records get onto the page ----------------------------------------------------------------------------------

RECORD: dict[str, Any] = {
    "seconds": 500.0, "total": 540.0, "settings": {"device": "cuda", "tiny": False},
    "steps": {
        "versions": {"status": "done", "seconds": 1, "rows": [{"what": "GPU", "value": "a card"}]},
        "rates": {"status": "done", "seconds": 2.0, "rows": [{"what": "product", "value": float("nan"), "bound": 1.0}]},
        "rewards": {"status": "failed", "seconds": 3.0, "error": "ValueError: no"},
    },
}  # fmt: skip


def test_a_record_is_published(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(RECORD))
    text = recorded.publish(file, tmp_path).read_text(encoding="utf-8")
    assert "| versions | GPU | a card |  |  |" in text
    assert json.loads((tmp_path / "performance" / "record.json").read_text())["gpu"]["measured"]["seconds"] == 500.0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"card": "h200", "rates": {}, "cases": {}}, "no record of a session, as --output names one: seconds: "),
        (RECORD | {"steps": {}}, "steps: "),
        (RECORD | {"total": "540"}, "total: "),
        (RECORD | {"steps": {"rates": {"status": "done", "seconds": 1.0, "rows": [{"what": "x"}]}}},
         "steps.rates.rows.0.value"),
        (RECORD | {"settings": {"device": "cuda", "tiny": True}}, "the record of a dry run with tiny models; the page"),
        (RECORD | {"settings": {"device": "cpu", "tiny": False}}, "the record of a session on 'cpu'; the page"),
        ([1], "there must be a JSON object in it, not list"),
    ],
)  # fmt: skip
def test_what_is_no_session_on_a_gpu_changes_no_file(
    found: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "DOCS", tmp_path / "docs")
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(found))
    with pytest.raises(UserError) as raised:
        command.run(write=file)
    assert str(raised.value).startswith(f"{file}: ")
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == [file]


def test_a_page_that_fails_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps(RECORD))
    monkeypatch.setattr(page, "HERE", tmp_path)  # there is no template
    with pytest.raises(Exception, match=r"page\.md\.jinja|history\.yaml"):
        recorded.publish(file, tmp_path)
    assert list(tmp_path.iterdir()) == [file]
