"""The loop on the toy model: it learns, it keeps its promises at start, stop, resume and failure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dgpo_core.builtin.timesteps import UniformTimesteps
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.hookspecs import RunInfo, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.accumulation import Accumulated
from dgpo_core.training.evaluation import Evaluator
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]


def logs(path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def scores(path: Path) -> list[dict[str, Any]]:
    """The records of the target, one an evaluation."""
    return [record for record in logs(path, "evaluations.jsonl") if record["role"] == "target"]


def fingerprint(path: Path) -> dict[str, bytes]:
    """Everything of a run that a resume must reproduce, byte for byte."""
    names = ["metrics.jsonl", "evaluations.jsonl"]
    newest = sorted((path / "checkpoints").iterdir())[-1]
    files = [path / n for n in names] + sorted(newest.glob("*.safetensors")) + sorted((path / "images").rglob("*.png"))
    return {str(f.relative_to(path)): f.read_bytes() for f in files}


def test_it_learns(make_config: Make, registry: Registry) -> None:
    config = make_config(
        run={"iterations": 60},
        rollout={"groups": 6, "group_size": 8},
        optimizer={"learning_rate": 0.02},
        evaluation={"every": 0},
        checkpoints={"every": 100},
        objective={"beta": 20.0, "clip": None, "kl": 0.0, "ema": {"every": 1}},
    )
    assert Trainer(config, registry).train() == "finished"
    path = run_path(config)
    before, after = scores(path)
    assert (before["iteration"], after["iteration"]) == (0, 60)
    assert after["low"] > before["high"]
    assert [m["iteration"] for m in logs(path)] == list(range(1, 61))
    assert set(after["groups"]) == {"even", "odd"}


def test_what_a_run_leaves_behind(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train()
    path = run_path(config)
    facts = json.loads((path / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or facts["versions"]["torch"]
    assert facts["prompts"]["train"]["count"] == 6
    assert len(facts["prompts"]["train"]["sha256"]) == 64
    assert [p.name for p in sorted((path / "checkpoints").iterdir())][-2:] == ["000003", "000004"]
    assert [p.name for p in sorted((path / "images").iterdir())] == ["000000", "000002", "000004"]
    assert (path / "images/000004/grid.png").is_file()
    timing = logs(path, "timings.jsonl")[-1]
    assert {"rollout", "score", "compute_advantages", "optimize"} <= timing["phases"].keys()
    assert timing["peak_memory_bytes"] > 0


def test_metrics_do_not_depend_on_micro_batches(make_config: Make, registry: Registry) -> None:
    """Any rollout micro-batch gives the same samples; any training micro-batch the same gradient."""
    found = []
    for name, rollout, optimize in (("a", None, None), ("b", 3, 3), ("c", 7, 100)):
        config = make_config(
            run={"name": name},
            rollout={"micro_batch": rollout},
            optimizer={"micro_batch": optimize, "learning_rate": 0.01},
            backbone={"options": {"double": True}},
        )
        Trainer(config, registry).train()
        found.append(logs(run_path(config)))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            for key in ("dsm", "sigmoid", "kl", "grad_norm", "change_norm", "diversity"):
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5), key
            assert mine["reward"]["mean"] == pytest.approx(theirs["reward"]["mean"], rel=1e-5)


@pytest.mark.parametrize(
    "objective", [{"ema_rollouts_after": 2}, {"reference": "ema_fast", "beta": 2000.0}, {"clip": None, "kl": 0.0}]
)
def test_resume_is_bit_exact_at_every_iteration(
    objective: dict[str, Any], make_config: Make, registry: Registry, tmp_path: Path
) -> None:
    config = make_config(objective=objective)
    Trainer(config, registry).train()
    wanted = fingerprint(run_path(config))
    for stop_after in (1, 2, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert logs(run_path(config))[-1]["iteration"] == stop_after
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert fingerprint(run_path(config)) == wanted


def test_a_stop_at_any_moment_loses_nothing(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop at the n-th forward pass, for every n: rolling out, optimizing and evaluating are all hit."""
    config = make_config(run={"iterations": 2}, checkpoints={"every": 10})
    passes = {"n": 0, "stop": -1}
    stop = StopRequest()
    velocity = ToyBackbone.velocity

    def counting(self: ToyBackbone, *arguments: Any) -> Any:
        passes["n"] += 1
        if passes["n"] == passes["stop"]:
            stop.request()
        return velocity(self, *arguments)

    monkeypatch.setattr(ToyBackbone, "velocity", counting)
    Trainer(config, registry).train()
    wanted, total = fingerprint(run_path(config)), passes["n"]
    for at in range(1, total + 1, 3):
        shutil.rmtree(run_path(config))
        passes["n"], passes["stop"], stop.requested = 0, at, False
        outcome = Trainer(config, registry, stop=stop).train()
        stop.requested = False
        if outcome == "interrupted":
            Trainer(config, registry).train(resume=True)
        assert fingerprint(run_path(config)) == wanted, f"stopped at pass {at} of {total}"


def test_resuming_a_finished_run_changes_nothing(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train()
    wanted = fingerprint(run_path(config))
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert fingerprint(run_path(config)) == wanted


def test_a_finished_run_can_be_made_longer(make_config: Make, registry: Registry) -> None:
    Trainer(make_config(run={"iterations": 6}), registry).train()
    wanted = fingerprint(run_path(make_config()))
    shutil.rmtree(run_path(make_config()))
    Trainer(make_config(run={"iterations": 4}), registry).train()
    Trainer(make_config(run={"iterations": 6}), registry).train(resume=True)
    assert fingerprint(run_path(make_config())) == wanted


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    make_config: Make, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    Trainer(config, registry).train()
    wanted = fingerprint(run_path(config))
    weights = run_path(config) / "checkpoints/000004/weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-3] ^= 1
    weights.write_bytes(bytes(damaged))
    Trainer(config, registry).train(resume=True)
    assert "000004/weights.safetensors: its content differs" in caplog.text
    assert fingerprint(run_path(config)) == wanted


def test_all_checkpoints_damaged(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train()
    for path in (run_path(config) / "checkpoints").iterdir():
        (path / "optimizer.safetensors").unlink()
    with pytest.raises(UserError, match=r"all checkpoints are damaged: .*000004/optimizer.safetensors: missing"):
        Trainer(config, registry).train(resume=True)


def test_another_format_version_is_not_guessed_at(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train()
    manifest = run_path(config) / "checkpoints/000004/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 3', '"format_version": 99'))
    with pytest.raises(UserError, match="99"):
        Trainer(config, registry).train(resume=True)


def test_resume_with_another_configuration_lists_what_differs(make_config: Make, registry: Registry) -> None:
    Trainer(make_config(), registry).train(max_iterations=1)
    with pytest.raises(UserError, match=r"(?s)these differ.*objective\.beta.*timesteps\.count"):
        Trainer(make_config(objective={"beta": 7.0}, timesteps={"count": 3}), registry).train(resume=True)


def test_resume_with_nothing_there(make_config: Make, registry: Registry) -> None:
    config = make_config()
    with pytest.raises(UserError, match="nothing to resume"):
        Trainer(config, registry).train(resume=True)
    assert not run_path(config).exists()


def test_a_run_is_not_overwritten(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=1)
    wanted = fingerprint(run_path(config))
    with pytest.raises(UserError, match="already contains a run"):
        Trainer(config, registry).train()
    assert fingerprint(run_path(config)) == wanted


def test_two_processes_do_not_share_a_directory(make_config: Make, registry: Registry) -> None:
    config = make_config()
    first = RunDirectory(run_path(config))
    first.acquire()
    try:
        with pytest.raises(UserError, match="in use by another process"):
            Trainer(config, registry).train()
    finally:
        first.release()
    Trainer(config, registry).train(max_iterations=1)


def test_weights_of_another_architecture_are_refused(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=1)
    newest = sorted((run_path(config) / "checkpoints").iterdir())[-1]
    other = make_config(backbone={"lora": {"rank": 2, "alpha": 2}}, run={"name": "other"})
    from dgpo_core.storage.checkpoint import load
    from dgpo_core.training.engine import build_engine

    with pytest.raises(UserError, match=r"made by another model or adapter: .* weights differ, the first is ema"):
        build_engine(other, registry).load_weights(load(newest))


def test_best_checkpoint_is_kept(make_config: Make, registry: Registry, gloom: object) -> None:
    """Where the evaluation values what training does not, it falls from the start, and the start is kept."""
    registry.register(gloom, distribution="gloom")
    config = make_config(
        run={"iterations": 8},
        optimizer={"learning_rate": 0.02},
        evaluation={"every": 1, "rewards": [{"use": "gloom"}]},
        checkpoints={"every": 1, "keep": 1},
        objective={"ema": {"every": 1}},
    )
    Trainer(config, registry).train()
    records = scores(run_path(config))
    best = max(records, key=lambda r: (r["value"], -r["iteration"]))["iteration"]
    kept = sorted(int(p.name) for p in (run_path(config) / "checkpoints").iterdir())
    assert kept == sorted({best, 8})
    assert best < 4
    found = RunDirectory(run_path(config)).checkpoints.find("best")
    assert found.manifest.iteration == best


def test_missing_rewards_are_counted_and_never_zero(make_config: Make, registry: Registry) -> None:
    config = make_config(
        rewards=[{"use": "brightness", "options": {"fail": "dark"}}],
        prompts={"heldout": None},
        run={"iterations": 1},
        evaluation={"every": 0},
        scoring={"max_missing": 0.9},
    )
    Trainer(config, registry).train()
    record = logs(run_path(config))[0]
    assert 0 < record["missing_rewards"] < 16
    assert record["reward"]["mean"] > 0.5


def test_all_rewards_missing_stops_with_the_reason(make_config: Make, registry: Registry) -> None:
    config = make_config(
        rewards=[{"use": "brightness", "options": {"fail": "raise"}}],
        prompts={"heldout": None},
        evaluation={"every": 0},
    )
    reason = r"100% of the scores of iteration 1 are missing \(limit .*\); .* RuntimeError: the lamp is broken"
    with pytest.raises(RunStopped, match=reason):
        Trainer(config, registry).train()
    assert (run_path(config) / "checkpoints/000000/manifest.json").is_file()


def test_several_rewards_are_summed_by_weight(make_config: Make, registry: Registry) -> None:
    config = make_config(
        rewards=[
            {"use": "brightness", "weight": 2.0},
            {"use": "brightness", "weight": -0.5, "name": "half", "options": {"scale": 0.5}},
        ]
    )
    Trainer(config, registry).train(max_iterations=1)
    record = logs(run_path(config))[0]
    first, second = (record["rewards"][name]["mean"] for name in ("brightness", "half"))
    assert second == pytest.approx(first / 2)
    assert record["reward"]["mean"] == pytest.approx(2 * first - 0.5 * second)


def test_non_finite_gradients_skip_the_update_and_stop_the_run(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(run={"iterations": 9}, optimizer={"max_skipped": 2}, evaluation={"every": 0})
    velocity = ToyBackbone.velocity
    poison = {"on": False}

    def poisoned(self: ToyBackbone, x: Any, sigma: Any, conditioning: Any) -> Any:
        out = velocity(self, x, sigma, conditioning)
        return out * torch.nan if poison["on"] and torch.is_grad_enabled() else out

    monkeypatch.setattr(ToyBackbone, "velocity", poisoned)
    Trainer(config, registry).train(max_iterations=1)
    newest = run_path(config) / "checkpoints/000001/weights.safetensors"
    before = safetensors.torch.load_file(newest)
    poison["on"] = True
    with pytest.raises(RunStopped, match="3 updates in a row"):
        Trainer(config, registry).train(resume=True)
    records = logs(run_path(config))
    assert [r["skipped_updates"] for r in records] == [0, 1, 2, 3]
    assert [r["updates"] for r in records] == [1, 1, 1, 1]
    after = safetensors.torch.load_file(run_path(config) / "checkpoints/000004/weights.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_observers_see_the_run_and_cannot_break_it(
    make_config: Make, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    class Watcher:
        @hookimpl
        def dgpo_run_started(self, run: RunInfo) -> None:
            seen.append(f"started {run.directory.name}")

        @hookimpl
        def dgpo_iteration_finished(self, run: RunInfo, iteration: int, metrics: Any) -> None:
            seen.append(f"{iteration}: {metrics['updates']}")

        @hookimpl
        def dgpo_run_finished(self, run: RunInfo, outcome: str) -> None:
            seen.append(outcome)

    class Clumsy:
        @hookimpl
        def dgpo_iteration_finished(self) -> None:
            raise RuntimeError("tripped")

    registry.register(Watcher(), distribution="watcher")
    registry.register(Clumsy(), distribution="clumsy")
    Trainer(make_config(run={"iterations": 2}), registry).train()
    assert seen == ["started toy", "1: 1", "2: 2", "finished"]
    assert caplog.text.count("tripped") == 1


def test_several_updates_an_iteration(make_config: Make, registry: Registry) -> None:
    config = make_config(optimizer={"updates": 2, "learning_rate": 0.01}, run={"iterations": 2})
    Trainer(config, registry).train()
    assert [r["updates"] for r in logs(run_path(config))] == [2, 4]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535533905932737, 0.5, 0.1464466094067262]),
    ],
)
def test_learning_rate(schedule: str, expected: list[float], make_config: Make, registry: Registry) -> None:
    config = make_config(
        run={"iterations": 6},
        optimizer={"learning_rate": 1.0, "warmup": 2, "schedule": schedule},
        evaluation={"every": 0},
    )
    optimizer = Trainer(config, registry).build().optimizer
    assert [optimizer.learning_rate(i) for i in range(6)] == pytest.approx(expected)


def test_a_full_disk_keeps_the_last_checkpoint(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    Trainer(config, registry).train(max_iterations=2)
    import dgpo_core.storage.checkpoint as module

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "_save_tensors", full)
        with pytest.raises(UserError, match="No space left on device"):
            Trainer(config, registry).train(resume=True)
    names = sorted(p.name for p in (run_path(config) / "checkpoints").iterdir())
    assert names == ["000001", "000002"]
    assert Trainer(config, registry).train(resume=True) == "finished"


def test_tensorboard_tracker(make_config: Make, registry: Registry) -> None:
    config = make_config(logging={"trackers": ["tensorboard"]}, run={"iterations": 1})
    Trainer(config, registry).train()
    assert list(run_path(config).rglob("events.out.tfevents.*"))


def test_a_failing_evaluation_costs_no_iteration(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is written although the evaluation comes first; once the reward is mended, the run goes on."""
    config = make_config(evaluation={"at_start": False}, checkpoints={"every": 10})
    Trainer(config, registry).train()
    wanted = fingerprint(run_path(config))
    shutil.rmtree(run_path(config))
    with monkeypatch.context() as patched:

        def broken(*arguments: Any, **keywords: Any) -> Any:
            raise UserError("evaluation: brightness scored none of 4 samples: the lamp is broken")

        patched.setattr(Evaluator, "evaluate", broken)
        with pytest.raises(UserError, match="the lamp is broken"):
            Trainer(config, registry).train()
    assert (run_path(config) / "checkpoints/000002/manifest.json").is_file()
    Trainer(config, registry).train(resume=True)
    assert fingerprint(run_path(config)) == wanted


def test_logs_without_a_checkpoint_are_not_overwritten(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train()
    shutil.rmtree(run_path(config) / "checkpoints")
    before = (run_path(config) / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="contains the logs of a run but no checkpoint"):
        Trainer(config, registry).train()
    assert (run_path(config) / "metrics.jsonl").read_bytes() == before


def test_resume_on_other_prompts_is_refused(make_config: Make, registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\ntwo\nthree\n")
    config = make_config(prompts={"train": {"file": str(file)}})
    Trainer(config, registry).train(max_iterations=1)
    facts = (run_path(config) / "run.json").read_bytes()
    file.write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"prompts\.train had 3 prompts when the run started and has 2 now"):
        Trainer(config, registry).train(resume=True)
    assert (run_path(config) / "run.json").read_bytes() == facts
    file.write_text("one\ntwo\nthree\n")
    assert Trainer(config, registry).train(resume=True) == "finished"


def test_a_damaged_checkpoint_does_not_outlive_sound_ones(make_config: Make, registry: Registry, gloom: object) -> None:
    """With one checkpoint to keep, a damaged later one must not count as the newest and cost the sound one."""
    registry.register(gloom, distribution="gloom")
    evaluation = {"rewards": [{"use": "gloom"}]}  # falls: the first checkpoint stays the best, and is kept
    config = make_config(checkpoints={"every": 1, "keep": 1}, run={"iterations": 3}, evaluation=evaluation)
    Trainer(config, registry).train()
    damaged = run_path(config) / "checkpoints/000003/weights.safetensors"
    damaged.write_bytes(b"")
    Trainer(config, registry).train(resume=True, max_iterations=1)
    assert RunDirectory(run_path(config)).checkpoints.newest().manifest.iteration == 1


def test_skipped_updates_in_a_row_are_counted_update_by_update(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second update is poisoned: never two in a row, so the run goes on."""
    config = make_config(run={"iterations": 4}, optimizer={"updates": 2, "max_skipped": 1}, evaluation={"every": 0})
    update, calls = Optimizer.apply, [0]

    def every_second(self: Optimizer, gradient: Accumulated) -> Any:
        calls[0] += 1
        return update(self, replace(gradient, loss=gradient.loss * torch.nan) if calls[0] % 2 == 0 else gradient)

    monkeypatch.setattr(Optimizer, "apply", every_second)
    assert Trainer(config, registry).train() == "finished"
    assert [r["skipped_updates"] for r in logs(run_path(config))] == [1, 2, 3, 4]


def test_the_logged_times_are_those_of_the_iteration(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []
    draw = UniformTimesteps.draw

    def watched(self: UniformTimesteps, *arguments: Any) -> Any:
        times = draw(self, *arguments)
        drawn.append(times.tolist())
        return times

    monkeypatch.setattr(UniformTimesteps, "draw", watched)
    config = make_config(run={"iterations": 2}, timesteps={"count": 3})
    Trainer(config, registry).train()
    assert [(r["t_min"], r["t_max"]) for r in logs(run_path(config))] == [(min(t), max(t)) for t in drawn]
