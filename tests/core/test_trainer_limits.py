"""Ends of a run in `stop`: seconds, samples, a target; and what a run leaves behind when it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dgpo_core.training.loop as module
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.system.stopping import StopRequest, limit_reached
from dgpo_core.training.dry_run import dry_run
from dgpo_core.training.saving import Saver
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_schemas.metrics import OutcomeRecord, PromptScores
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.whole import StopSection

Make = Callable[..., RunConfig]


def lines(path: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def outcome(path: Path) -> OutcomeRecord:
    return OutcomeRecord.model_validate_json((path / "outcome.json").read_text())


def record(iteration: int, value: float, reward: str = "first") -> dict[str, Any]:
    return {"iteration": iteration, "reward": reward, "value": value}


@pytest.mark.parametrize(
    ("stop", "seconds", "samples", "evaluations", "expected"),
    [
        ({}, 1e9, 10**9, [record(0, 1e9)], None),
        ({"seconds": 10}, 9.9, 0, [], None),
        ({"seconds": 10}, 10.0, 0, [], "seconds"),
        ({"samples": 100}, 0, 99, [], None),
        ({"samples": 100}, 0, 100, [], "samples"),
        ({"samples": 100, "seconds": 1}, 1, 100, [], "samples"),
        ({"target": 0.5}, 0, 0, [], None),
        ({"target": 0.5}, 0, 0, [record(0, 0.5)], "target"),
        ({"target": 0.5}, 0, 0, [record(0, 0.4), record(0, 0.9, "second")], None),
        ({"target": 0.5, "reward": "second"}, 0, 0, [record(0, 0.4), record(0, 0.9, "second")], "target"),
        ({"target": 0.5, "reward": "second"}, 0, 0, [record(0, 0.9), record(0, 0.4, "second")], None),
        ({"target": 0.5}, 0, 0, [record(0, 0.4), record(2, 0.6), record(4, 0.3)], "target"),
        ({"target": 0.5, "in_a_row": 2}, 0, 0, [record(0, 0.6), record(2, 0.4), record(4, 0.6)], None),
        (
            {"target": 0.5, "in_a_row": 2},
            0,
            0,
            [record(0, 0.4), record(2, 0.6), record(4, 0.5), record(6, 0)],
            "target",
        ),
        ({"target": 0.5, "in_a_row": 2}, 0, 0, [record(0, 0.6), record(0, 0.7, "second"), record(2, 0.4)], None),
    ],
)
def test_which_limit_is_reached(
    stop: dict[str, Any], seconds: float, samples: int, evaluations: list[dict[str, Any]], expected: str | None
) -> None:
    section = StopSection.model_validate(stop)
    assert limit_reached(section, seconds=seconds, samples=samples, evaluations=evaluations) == expected


def test_samples_end_a_run_like_a_last_iteration_does(make_config: Make, registry: Registry) -> None:
    """16 samples an iteration: the third reaches 40. It is evaluated and saved though neither would be due."""
    config = make_config(run={"iterations": 9}, stop={"samples": 40}, checkpoints={"every": 50})
    assert Trainer(config, registry).train() == "finished"
    path = run_path(config)
    assert [line["iteration"] for line in lines(path, "metrics.jsonl")] == [1, 2, 3]
    assert [line["iteration"] for line in lines(path, "evaluations.jsonl") if line["role"] == "target"] == [0, 2, 3]
    assert max(p.name for p in (path / "checkpoints").iterdir()) == "000003"
    assert outcome(path) == OutcomeRecord(outcome="finished", iteration=3, ended_by="samples")
    before = (path / "metrics.jsonl").read_bytes()
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert (path / "metrics.jsonl").read_bytes() == before
    # Where a run ends may change: it goes on as if it had never stopped there.
    longer = make_config(run={"iterations": 5}, checkpoints={"every": 50})
    assert Trainer(longer, registry).train(resume=True) == "finished"
    assert outcome(path) == OutcomeRecord(outcome="finished", iteration=5, ended_by="iterations")
    never = make_config(run={"name": "never", "iterations": 5}, checkpoints={"every": 50})
    Trainer(never, registry).train()
    assert (path / "metrics.jsonl").read_bytes() == (run_path(never) / "metrics.jsonl").read_bytes()


def test_seconds_are_those_of_training_and_outlive_a_resume(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock on which every iteration takes 10 seconds; evaluations and checkpoints take 1000."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    compute_advantages, save = module.compute_advantages, Saver.save

    def slow_advantages(*arguments: Any) -> Any:
        now[0] += 10
        return compute_advantages(*arguments)

    def slow_save(self: Saver) -> None:
        now[0] += 1000
        save(self)

    monkeypatch.setattr(module, "compute_advantages", slow_advantages)
    monkeypatch.setattr(Saver, "save", slow_save)
    config = make_config(run={"iterations": 99}, stop={"seconds": 45})
    Trainer(config, registry).train(max_iterations=2)
    assert outcome(run_path(config)) == OutcomeRecord(outcome="finished", iteration=2, ended_by=None)
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert outcome(run_path(config)) == OutcomeRecord(outcome="finished", iteration=5, ended_by="seconds")


def test_a_target_ends_a_run(make_config: Make, registry: Registry) -> None:
    config = make_config(run={"iterations": 6}, evaluation={"every": 1, "prompts": 4})
    Trainer(config, registry).train()
    scores = [e["value"] for e in lines(run_path(config), "evaluations.jsonl") if e["role"] == "target"]
    highest = max(scores[1:])
    first = next(i for i, score in enumerate(scores) if score >= highest)
    config = make_config(
        run={"name": "ended", "iterations": 6}, evaluation={"every": 1, "prompts": 4}, stop={"target": highest}
    )
    Trainer(config, registry).train()
    assert outcome(run_path(config)).ended_by == ("target" if first < 6 else "iterations")
    assert outcome(run_path(config)).iteration == first
    reached = make_config(run={"name": "already"}, stop={"target": min(scores) - 1})
    Trainer(reached, registry).train()
    assert outcome(run_path(reached)) == OutcomeRecord(outcome="finished", iteration=0, ended_by="target")


def test_how_a_run_ended_is_reported_only_when_it_has(make_config: Make, registry: Registry) -> None:
    config = make_config(rewards=[{"use": "brightness", "options": {"fail": "dark"}}], scoring={"max_missing": 0})
    path = run_path(config)
    with pytest.raises(RunStopped):
        Trainer(config, registry).train()
    assert outcome(path) == OutcomeRecord(outcome="failed", iteration=0, ended_by=None)
    stop = StopRequest()
    other = make_config(run={"name": "other"})
    trainer = Trainer(other, registry, stop=stop)
    stop.request()
    assert trainer.train() == "interrupted"
    assert outcome(run_path(other)) == OutcomeRecord(outcome="interrupted", iteration=0, ended_by=None)
    trainer = Trainer(other, registry)
    trainer.store.claim(other, resume=True, make=True)
    trainer.store.describe(other, registry, {}, None, {})
    trainer.store.release()
    assert not (run_path(other) / "outcome.json").exists()


def test_scores_by_prompt_make_up_the_records(make_config: Make, registry: Registry) -> None:
    config = make_config(
        evaluation={"every": 2, "prompts": 5, "samples_per_prompt": 3, "monitors": {"rewards": [{"use": "brightness",
        "name": "monitor", "options": {"scale": 0.5}}]}},
        prompts={"heldout": {"use": "toy"}, "train": {"use": "toy"}},
    )  # fmt: skip
    Trainer(config, registry).train()
    path = run_path(config)
    assert sorted(p.name for p in (path / "scores").iterdir()) == ["000000.json", "000002.json", "000004.json"]
    for iteration in (0, 2, 4):
        kept = PromptScores.model_validate_json((path / "scores" / f"{iteration:06d}.json").read_text())
        assert len(kept.prompts) == 5
        assert list(kept.rewards) == ["brightness", "monitor"]
        for line in lines(path, "evaluations.jsonl"):
            if line["iteration"] == iteration and line["role"] != "statistic":
                found = kept.rewards[line["reward"]]
                by_task = [
                    np.mean([v for v, t in zip(found.values, found.tasks, strict=True) if t == task and v is not None])
                    for task in ("even", "odd")
                ]
                assert np.mean(by_task) == pytest.approx(line["value"], abs=1e-12)


def test_an_option_that_a_plugin_has_got_since_is_no_other_configuration(make_config: Make, registry: Registry) -> None:
    """Its default is what the run has had all along; another value is not."""
    from dgpo_core.config.pipeline import load_run_config
    from dgpo_schemas.yaml_text import dump_yaml

    first = Trainer(make_config(), registry)
    first.train(max_iterations=1)
    file = run_path(first.config) / "config.yaml"
    today = load_run_config(file, registry=registry)
    assert today.backbone.options == {"double": False}
    before = today.model_dump(mode="json")
    before["backbone"]["options"] = {}
    file.write_text(dump_yaml(before))
    other = load_run_config(file, ["backbone.options.double=true"], registry)
    with pytest.raises(UserError, match=r"backbone\.options\.double: false when it started, true now"):
        Trainer(other, registry).train(resume=True)
    assert Trainer(today, registry).train(resume=True) == "finished"


def test_dry_run_writes_nothing(make_config: Make, registry: Registry, tmp_path: Path) -> None:
    found = dry_run(Trainer(make_config(), registry))
    assert len(found["rewards"]["brightness"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output(make_config: Make, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Trainer(make_config(run={"output": str(tmp_path / "file")}), registry).train()
