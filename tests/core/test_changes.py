"""Settings that a resume changes: what holds from then on, what run.json tells of it, what is not compared any more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.config.changes import Change, changes, history, last_measured_otherwise, measures, recorded, reported
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.description import read_config, read_record
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
RATE = "optimizer.learning_rate"


def logs(config: RunConfig, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_path(config) / name).read_text().splitlines()]


def reported_changes(config: RunConfig) -> list[tuple[int, str, Any, Any]]:
    """The changes in run.json without their times."""
    found = read_record(run_path(config))["changes"]
    assert all(one["time"].endswith("+00:00") for one in found)
    return [(one["iteration"], one["key"], one["was"], one["now"]) for one in found]


def test_the_schedule_is_that_of_the_new_settings_at_the_resumed_update(make_config: Make, registry: Registry) -> None:
    """Two updates with 0.01, then a cosine over 8 updates from a peak of 0.004, of which 2 are warm-up."""
    short: dict[str, Any] = {"evaluation": {"every": 0, "at_start": False}, "checkpoints": {"every": 1, "keep": 9}}
    first = make_config(run={"iterations": 6}, **short)
    Trainer(first, registry).train(max_iterations=2)
    then = make_config(
        run={"iterations": 8}, optimizer={"learning_rate": 0.004, "schedule": "cosine", "warmup": 2}, **short
    )
    trainer = Trainer(then, registry)
    trainer.train(resume=True)
    expected = [0.01, 0.01] + [0.002 * (1 + math.cos(math.pi * (k - 2) / 6)) for k in range(2, 8)]
    assert [line["learning_rate"] for line in logs(then)] == pytest.approx(expected, rel=1e-12)
    assert {float(state["step"]) for state in trainer.build().optimizer.adamw.state.values()} == {
        8.0
    }  # moments went on
    assert reported_changes(then) == [
        (2, "run.iterations", 6, 8),
        (2, RATE, 0.01, 0.004),
        (2, "optimizer.schedule", "constant", "cosine"),
        (2, "optimizer.warmup", 0, 2),
    ]
    assert read_config(run_path(then)).optimizer == then.optimizer


def test_a_change_holds_from_there_on_as_if_the_optimizer_had_been_reported(
    make_config: Make, registry: Registry
) -> None:
    """Moments are kept: the same weights come out as in one process whose rate and decay are changed in its middle."""
    first = make_config(evaluation={"every": 0})
    Trainer(first, registry).train(max_iterations=2)
    then = make_config(evaluation={"every": 0}, optimizer={"learning_rate": 0.003, "weight_decay": 0.1})
    resumed = Trainer(then, registry)
    resumed.train(resume=True)

    class Turning(Callback):
        def on_iteration_start(self, iteration: int) -> None:
            if iteration == 2:
                optimizer = one.build().optimizer
                optimizer.section = then.optimizer
                for group in optimizer.adamw.param_groups:
                    group["weight_decay"] = 0.1

    one = Trainer(make_config(run={"name": "one"}, evaluation={"every": 0}), registry, callbacks=[Turning()])
    one.train()
    assert [line["change_norm"] for line in logs(then)] == [line["change_norm"] for line in logs(one.config)]


def test_changes_are_reported_once_and_back_again(make_config: Make, registry: Registry) -> None:
    first, then = make_config(), make_config(optimizer={"learning_rate": 0.002})
    Trainer(first, registry).train(max_iterations=1)
    assert reported_changes(first) == []
    Trainer(then, registry).train(resume=True, max_iterations=1)
    Trainer(then, registry).train(resume=True, max_iterations=1)  # killed, and started again with the same file
    assert reported_changes(then) == [(1, RATE, 0.01, 0.002)]
    Trainer(first, registry).train(resume=True)
    assert reported_changes(then) == [(1, RATE, 0.01, 0.002), (3, RATE, 0.002, 0.01)]
    assert [line["learning_rate"] for line in logs(first)] == [0.01, 0.002, 0.002, 0.01]


def test_a_process_that_is_killed_between_the_two_files_leaves_nothing_untold(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dgpo_core.storage.description as module

    Trainer(make_config(), registry).train(max_iterations=1)
    write = module.write_text

    def killed(path: Path, text: str) -> None:
        if path.name == "config.yaml":
            raise KeyboardInterrupt
        write(path, text)

    then = make_config(optimizer={"learning_rate": 0.002})
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            Trainer(then, registry).train(resume=True)
    Trainer(then, registry).train(resume=True)
    assert reported_changes(then) == [(1, RATE, 0.01, 0.002)]


def test_changes_of_iterations_that_are_computed_again_hold_earlier() -> None:
    before = recorded(None, [Change(RATE, 1.0, 2.0)], 5)
    assert [(one["iteration"], one["now"]) for one in recorded(before, [Change(RATE, 2.0, 3.0)], 4)] == [
        (4, 2.0),
        (4, 3.0),
    ]
    assert [(one["iteration"], one["now"]) for one in recorded(before, [], 9)] == [(5, 2.0)]


def test_what_a_resume_changed_is_reported_in_one_line() -> None:
    found = [
        {"iteration": at, "key": key, "was": was, "now": now, "time": "2026-01-01T00:00:00+00:00"}
        for at, key, was, now in (
            (2, "run.iterations", 2, 4),
            (2, "stop.target", None, 0.5),
            (3, "run.iterations", 4, 5),
        )
    ]
    assert history(found) == [
        "after iteration 2: run.iterations 2 -> 4; stop.target null -> 0.5",
        "after iteration 3: run.iterations 4 -> 5",
    ]


@pytest.mark.parametrize("found", [None, 3, "x", [3], [{"iteration": 1}], [{"later": 1, "key": "a"}]])
def test_a_record_that_says_nothing_of_changes(found: object) -> None:
    assert recorded(found, [], 3) == []
    assert last_measured_otherwise(found) == -1


def test_what_a_worker_is_given_is_not_shown(make_config: Make) -> None:
    def with_token(token: str) -> RunConfig:
        return make_config(rewards=[{"use": "brightness", "worker": {"environment": {"TOKEN": token}}}])

    found = changes(with_token("first"), with_token("second"))
    line = reported(found, 3)
    assert line == "settings changed after iteration 3: rewards.0.worker.environment.TOKEN (changed)"
    assert not {"first", "second"} & set(json.dumps(recorded([], found, 3)).replace('"', " ").split())


def test_what_a_new_measure_says_is_not_compared_with_the_old_one(make_config: Make, registry: Registry) -> None:
    """Brightness times 100 would be the best for ever, and would end the run at its target."""
    bright = [{"use": "brightness", "options": {"scale": 1.0}}]
    dim = [{"use": "brightness", "options": {"scale": 0.01}}]
    section: dict[str, Any] = {"every": 1, "prompts": 4, "images": 0}
    first = make_config(
        run={"iterations": 5}, evaluation=section | {"rewards": bright}, checkpoints={"every": 9, "keep": 1}
    )
    Trainer(first, registry).train(max_iterations=2)
    then = make_config(
        run={"iterations": 5}, evaluation=section | {"rewards": dim}, stop={"target": 0.1},
        checkpoints={"every": 9, "keep": 1},
    )  # fmt: skip
    trainer = Trainer(then, registry)
    trainer.train(resume=True, max_iterations=1)
    assert trainer.state.ended_by is None
    assert trainer.state.best is not None
    assert trainer.state.best[0] == 3
    assert trainer.state.best[1] < 0.011
    again = Trainer(then, registry)
    again.train(resume=True)
    scores = {e["iteration"]: e["value"] for e in logs(then, "evaluations.jsonl") if e["role"] == "target"}
    best = max((i for i in scores if i > 2), key=scores.__getitem__)
    assert again.state.best == (best, scores[best])
    assert {e["iteration"] for e in again.state.evaluations_after(again.state.otherwise)} == {3, 4, 5}


def test_the_best_of_the_old_measure_is_kept_until_there_is_one_of_the_new(
    make_config: Make, registry: Registry
) -> None:
    section: dict[str, Any] = {"every": 2, "prompts": 4, "images": 0}
    Trainer(make_config(evaluation=section), registry).train(max_iterations=2)
    config = make_config(
        run={"iterations": 9}, evaluation={**section, "every": 4, "steps": 2}, checkpoints={"every": 1, "keep": 1}
    )
    trainer = Trainer(config, registry)
    trainer.train(resume=True, max_iterations=1)
    assert trainer.state.best is not None
    kept = {int(path.name) for path in (run_path(config) / "checkpoints").iterdir()}
    assert kept == {3, trainer.state.best[0]}


@pytest.mark.parametrize(
    ("key", "alone", "with_monitors"),
    [
        ("evaluation.prompts", True, True),
        ("evaluation.rewards.0.options.scale", True, True),
        ("evaluation.rewards", True, True),
        ("evaluation.sampler.use", True, True),
        ("evaluation.many_step.steps", False, True),
        ("evaluation.monitors.rewards.0.use", False, True),
        ("evaluation.monitors.rewards.0.worker.count", False, False),
        ("evaluation.rewards.0.service.urls.0", False, False),
        ("evaluation.monitors.tolerances.diversity", False, False),
        ("evaluation.every", False, False),
        ("evaluation.images", False, False),
        ("rollout.steps", False, False),
    ],
)
def test_which_settings_make_another_measure(key: str, alone: bool, with_monitors: bool) -> None:
    assert (measures(key), measures(key, monitors=True)) == (alone, with_monitors)


def test_a_refusal_says_what_may_change(make_config: Make, registry: Registry) -> None:
    Trainer(make_config(), registry).train(max_iterations=1)
    other = make_config(run={"seed": 4}, optimizer={"learning_rate": 0.5})
    with pytest.raises(UserError) as caught:
        Trainer(other, registry).train(resume=True)
    message = str(caught.value)
    assert "run.seed: 3 when it started, 4 now" in message
    assert f"{RATE}: " not in message
    assert "optimizer.{learning_rate," in message
    assert "run.name" in message
    assert reported_changes(other) == []  # nothing was written


# -- --resume auto -------------------------------------------------------------------------------------------------


def test_auto_begins_goes_on_and_ends(make_config: Make, registry: Registry) -> None:
    config = make_config()
    for _ in range(3):
        trainer = Trainer(config, registry)
        assert trainer.train(resume="auto", max_iterations=2) == "finished"
    assert trainer.state.had_ended
    assert [line["iteration"] for line in logs(config)] == [1, 2, 3, 4]


def test_auto_sets_the_logs_of_a_run_aside_that_saved_nothing(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=1)
    path = run_path(config)
    wanted = (path / "metrics.jsonl").read_bytes()
    for number in (1, 2):
        for checkpoint in (path / "checkpoints").iterdir():
            checkpoint.rename(path / f"{checkpoint.name}-{number}")  # it was killed before it saved
        before = (path / "metrics.jsonl").read_bytes()
        notes: list[str] = []
        watcher = Callback()
        watcher.on_warning = notes.append  # type: ignore[method-assign]
        Trainer(config, registry, callbacks=[watcher]).train(resume="auto", max_iterations=1)
        assert [note for note in notes if "before-" in note] == [
            "the previous run was killed before its first checkpoint; its logs are in "
            f"{path / f'before-{number}'}, and it starts over"
        ]
        assert (path / f"before-{number}/metrics.jsonl").read_bytes() == before
        assert (path / f"before-{number}/run.json").is_file()
        assert (path / "metrics.jsonl").read_bytes() == wanted


def test_auto_leaves_a_run_alone_that_is_in_use(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=1)
    (run_path(config) / "checkpoints").rename(run_path(config) / "elsewhere")
    holder = RunDirectory(run_path(config))
    holder.acquire()
    try:
        with pytest.raises(UserError, match="in use by another process"):
            Trainer(config, registry).train(resume="auto")
    finally:
        holder.release()
    assert not (run_path(config) / "before-1").exists()


def test_auto_leaves_nothing_behind_where_a_run_cannot_begin(make_config: Make, registry: Registry) -> None:
    config = make_config(backbone={"checkpoint": "missing"})
    with pytest.raises(UserError, match="no such directory"):
        Trainer(config, registry).train(resume="auto")
    assert not run_path(config).exists()


def test_auto_does_not_begin_anew_where_all_checkpoints_are_damaged(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=1)
    for file in run_path(config).glob("checkpoints/*/weights.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        Trainer(config, registry).train(resume="auto")


def test_checkpoints_without_a_configuration_belong_to_nothing(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=1)
    (run_path(config) / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has checkpoints but no config\.yaml"):
        Trainer(config, registry).train(resume="auto")
