"""What callbacks hear of a run, and the components that they may look at."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import ProcessLostError, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.storage.store import RunStore
from dgpo_core.training.callbacks import Callback, Phases
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import BrightnessReward
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
EVENTS = [name for name in vars(Callback) if name.startswith("on_")]


class Recorder(Callback):
    """Writes every call down."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        for event in EVENTS:
            setattr(self, event, lambda *arguments, event=event: self.heard.append((event, *arguments)))

    def of(self, event: str) -> list[Any]:
        """The first argument of each call."""
        return [arguments[0] for name, *arguments in self.heard if name == event]


def test_a_run_is_reported_in_the_order_of_its_deeds(make_config: Make, registry: Registry) -> None:
    recorder = Recorder()
    config = make_config(run={"iterations": 1}, evaluation={"every": 1, "at_start": False})
    Trainer(config, registry, callbacks=[recorder]).train()
    quiet = ("on_progress", "on_message", "on_warning")
    reported = [
        (event, *rest[:1]) if "phase" in event else (event,) for event, *rest in recorder.heard if event not in quiet
    ]
    phases = {
        phase: [("on_phase_start", phase), ("on_phase_end", phase)]
        for phase in ("rollout", "wait_for_scores", "compute_advantages", "optimize", "evaluate", "checkpoint")
    }
    assert reported == [
        ("on_start",),
        *[*phases["checkpoint"], ("on_checkpoint",)],
        ("on_iteration_start",),
        *[
            *phases["rollout"],
            *phases["wait_for_scores"],
            *phases["compute_advantages"],
            ("on_advantages",),
            *phases["optimize"],
            ("on_metrics",),
        ],
        *[*phases["evaluate"], ("on_evaluation",)],
        *[*phases["checkpoint"], ("on_checkpoint",)],
        ("on_iteration_end",),
        ("on_end",),
    ]
    assert recorder.of("on_iteration_start") == [0]
    assert recorder.of("on_checkpoint") == [0, 1]
    assert set(recorder.of("on_progress")) == {"rollout", "score", "optimize", "evaluate"}
    assert (recorder.of("on_end")[0].outcome, recorder.of("on_end")[0].ended_by) == ("finished", "iterations")


def test_a_process_that_is_lost_after_an_update_costs_no_line_of_the_log(make_config: Make, registry: Registry) -> None:
    config = make_config(checkpoints={"every": 100}, evaluation={"every": 0, "at_start": False})
    trainer, times = Trainer(config, registry), []

    def reported(value: Any) -> Any:
        if isinstance(value, float):  # the seconds of an iteration
            times.append(value)
            if len(times) == 2:
                raise ProcessLostError("lost")
        return value

    trainer.processes.broadcast_object = reported  # type: ignore[method-assign]
    with pytest.raises(ProcessLostError, match="lost; the state after iteration 2 is saved; continue with --resume"):
        trainer.train()
    lines = (run_path(config) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 2]


def test_phases_last_as_long_as_the_log_says(make_config: Make, registry: Registry) -> None:
    class Clock(Callback):
        spent: dict[str, float] = defaultdict(float)

        def on_phase_end(self, phase: str, seconds: float) -> None:
            self.spent[phase] += seconds

        def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
            for phase in ("compute_advantages", "optimize"):
                assert timing.phases[phase].seconds == self.spent[phase]
            assert timing.phases["rollout"].seconds <= self.spent["rollout"]  # without waiting for slow rewards
            self.spent.clear()

    config = make_config(run={"iterations": 2}, evaluation={"at_start": False})
    Trainer(config, registry, callbacks=[Clock()]).train()
    assert len((run_path(config) / "timings.jsonl").read_text().splitlines()) == 2


def test_callbacks_come_after_the_logs(make_config: Make, registry: Registry) -> None:
    lines: list[int] = []

    class Reader(Callback):
        def on_metrics(self, metrics: MetricsRecord) -> None:
            (*_, last) = (run_path(config) / "metrics.jsonl").read_text().splitlines()
            lines.append(json.loads(last)["iteration"])

    config = make_config(run={"iterations": 2})
    Trainer(config, registry, callbacks=[Reader()]).train()
    assert lines == [1, 2]


def test_a_callback_that_fails_at_the_end_does_not_hide_what_went_wrong_first(
    make_config: Make, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Callback):
        def on_metrics(self, metrics: MetricsRecord) -> None:
            raise ValueError("first")

        def on_end(self, outcome: object) -> None:
            raise ValueError("second")

    with pytest.raises(ValueError, match="first"):
        Trainer(make_config(), registry, callbacks=[Broken()]).train()
    assert "a callback failed when the run had ended" in caplog.text


def test_the_components_of_a_run_are_built_once_and_stay(make_config: Make, registry: Registry) -> None:
    trainer = Trainer(make_config(), registry)
    run = trainer.build()
    assert trainer.build() is run
    optional = {"compile_report", "exploration_sampler"}  # only with backbone.compile and rollout.explore
    assert all(getattr(run, field.name) is not None for field in dataclasses.fields(run) if field.name not in optional)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.scorer = None  # type: ignore[misc, assignment]
    trainer.close()


def test_what_was_built_is_closed_where_building_fails(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    for kind in (BrightnessReward, Scorer):

        def close(self: Any, before: Callable[[Any], None] = kind.close, name: str = kind.__name__) -> None:
            closed.append(name)
            before(self)

        monkeypatch.setattr(kind, "close", close)
    config = make_config(evaluation={"monitors": {"rewards": [{"use": "win-rate"}]}})
    with pytest.raises(UserError, match=r"evaluation\.samples_per_prompt: must be at least 2 for the reward win-rate"):
        Trainer(config, registry).train()
    assert closed == ["Scorer", "BrightnessReward"]


def test_a_process_that_does_not_write_has_a_store_that_keeps_nothing(tmp_path: Path) -> None:
    """With the same methods as a directory, so that nobody asks which it is."""
    wanted = [name for name, _ in inspect.getmembers(RunStore, inspect.isfunction)]
    assert all(name in vars(RunDirectory) for name in wanted)
    store = RunStore()
    store.save(trained_seconds=1.0)
    store.prune(None, None)
    store.set_clock(1, 1.0)
    assert store.checkpoint_paths() == []
    store.release()
    assert list(tmp_path.iterdir()) == []


def test_a_phase_that_fails_does_not_wait_for_the_device() -> None:
    """What is queued may be a collective with a rank that was lost, which never ends."""
    waited: list[str] = []
    phases = Phases(Callback(), lambda: waited.append("device"))
    with phases.timed("rollout"):
        pass
    assert waited == ["device"]
    with pytest.raises(ProcessLostError), phases.timed("optimize"):
        raise ProcessLostError("gone")
    assert waited == ["device"]
    assert set(phases.seconds) == {"rollout", "optimize"}
