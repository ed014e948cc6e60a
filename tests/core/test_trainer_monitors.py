"""Runs that are watched: monitors that are never trained on, alarms, and scores that go missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo_core.training.loop as module
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_core.system.stopping import Interrupted
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.evaluation import Evaluator
from dgpo_core.training.monitors import media_statistics
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Prompt, ScoredGroups, Scores
from dgpo_kit.toy import BrightnessReward, ToyBackbone
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
LEARNS: dict[str, Any] = {
    "run": {"iterations": 12},
    "rollout": {"groups": 6, "group_size": 8},
    "optimizer": {"learning_rate": 0.05},
    "checkpoints": {"every": 100},
    "objective": {"beta": 10.0, "clip": None, "kl": 0.0},
}
"""Enough to raise brightness beyond the intervals within six iterations."""
STATISTICS = ("diversity", "saturation", "edge_density", "dark_pixels")


class Notes(Callback):
    """Keeps what is said of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_message(self, text: str) -> None:
        self.notes.append(text)


def watched(**monitors: Any) -> dict[str, Any]:
    """The section `evaluation`: brightness is the target, gloom monitors."""
    monitors = {"rewards": [{"use": "gloom"}], **monitors}
    sampled = {"prompts": 6, "samples_per_prompt": 8, "model": "policy", "images": 2}
    return {"every": 3, **sampled, "monitors": monitors}


def logs(path: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def evaluated(path: Path, label: str) -> list[dict[str, Any]]:
    return [record for record in logs(path, "evaluations.jsonl") if record["reward"] == label]


def newest(path: Path) -> Path:
    return max((path / "checkpoints").iterdir())


def result(path: Path) -> dict[str, bytes]:
    """What was computed, byte for byte."""
    files = [path / "metrics.jsonl", path / "evaluations.jsonl", *newest(path).glob("*.safetensors")]
    return {file.name: file.read_bytes() for file in files} | {"newest": newest(path).name.encode()}


@pytest.fixture
def known(registry: Registry, gloom: object) -> Registry:
    """With the reward gloom."""
    registry.register(gloom, distribution="gloom")
    return registry


# -- monitors ---------------------------------------------------------------------------------------------------------


def test_monitors_are_evaluated_and_never_trained_on(make_config: Make, known: Registry) -> None:
    config = make_config(**LEARNS, evaluation=watched())
    Trainer(config, known).train()
    path = run_path(config)
    assert all(record["rewards"].keys() == {"brightness"} for record in logs(path))
    assert all(timing["rewards"].keys() == {"brightness"} for timing in logs(path, "timings.jsonl"))
    first, *_ = by_iteration = [
        [record for record in logs(path, "evaluations.jsonl") if record["iteration"] == i] for i in (0, 3, 6, 9, 12)
    ]
    assert [(r["reward"], r["role"]) for r in first] == [
        ("brightness", "target"),
        ("gloom", "monitor"),
        *((name, "statistic") for name in STATISTICS),
    ]
    for target, monitor, *_ in by_iteration:  # the same samples: what one has the other lacks
        assert target["value"] + monitor["value"] == pytest.approx(1.0, abs=1e-6)
        assert set(monitor["groups"]) == {"even", "odd"}
    # Without them the run is the same, to the last bit.
    metrics, weights = (path / "metrics.jsonl").read_bytes(), (newest(path) / "weights.safetensors").read_bytes()
    alone = make_config(**LEARNS | {"run": {"iterations": 12, "name": "alone"}}, evaluation=watched(rewards=[]))
    Trainer(alone, known).train()
    assert (run_path(alone) / "metrics.jsonl").read_bytes() == metrics
    assert (newest(run_path(alone)) / "weights.safetensors").read_bytes() == weights


def test_the_best_checkpoint_is_that_of_the_target(make_config: Make, known: Registry) -> None:
    """The monitor is best at the start."""
    config = make_config(**LEARNS, evaluation=watched())
    Trainer(config, known).train()
    values = {record["iteration"]: record["value"] for record in evaluated(run_path(config), "brightness")}
    best = max(values, key=lambda iteration: values[iteration])
    assert best > 0
    assert RunDirectory(run_path(config)).checkpoints.find("best").manifest.iteration == best


def test_a_reward_trained_on_and_a_monitor_of_other_options_are_two_models(
    make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[BrightnessReward] = []
    original = BrightnessReward.__init__

    def remembered(self: BrightnessReward, *arguments: Any, **keywords: Any) -> None:
        original(self, *arguments, **keywords)
        made.append(self)

    monkeypatch.setattr(BrightnessReward, "__init__", remembered)
    monitors = [{"use": "brightness", "name": "half", "options": {"scale": 0.5}}, {"use": "brightness", "name": "same"}]
    config = make_config(run={"iterations": 1}, evaluation=watched(rewards=monitors))
    Trainer(config, known).train()
    assert [model.options.scale for model in made] == [1.0, 0.5]
    whole, half, same = (evaluated(run_path(config), label) for label in ("brightness", "half", "same"))
    assert [r["value"] for r in same] == [r["value"] for r in whole]
    assert [r["value"] for r in half] == pytest.approx([r["value"] / 2 for r in whole])


# -- alarms ---------------------------------------------------------------------------------------------------------


def test_an_alarm_is_reported_and_the_run_goes_on(make_config: Make, known: Registry) -> None:
    config, said = make_config(**LEARNS, evaluation=watched()), Notes()
    assert Trainer(config, known, callbacks=[said]).train() == "finished"
    path = run_path(config)
    brightness, gloom = (evaluated(path, label) for label in ("brightness", "gloom"))
    expected = [
        f"alarm after iteration {now['iteration']}: brightness rose from {brightness[0]['value']:.3f} to "
        f"{target['value']:.3f} while gloom fell from {gloom[0]['value']:.3f} to {now['value']:.3f} (tolerance 0.000): "
        "a sign of reward hacking; look at the images"
        for target, now in zip(brightness, gloom, strict=True)
        if now["high"] < gloom[0]["low"]
    ]
    assert expected, "else nothing is tested"
    assert [note for note in said.notes if "gloom" in note] == expected
    assert len(logs(path)) == 12


@pytest.mark.parametrize("monitors", [{"alarm": "off"}, {"tolerances": {"gloom": 1.0}}, {"rewards": []}])
def test_no_alarm_without_a_monitor_outside(monitors: dict[str, Any], make_config: Make, known: Registry) -> None:
    statistics = {} if "alarm" in monitors else dict.fromkeys(STATISTICS, 1.0)
    section = watched(**monitors | {"tolerances": monitors.get("tolerances", {}) | statistics})
    said = Notes()
    Trainer(make_config(**LEARNS, evaluation=section), known, callbacks=[said]).train()
    assert said.notes == []


def test_an_alarm_stops_the_run_and_a_resume_goes_on_bit_by_bit(make_config: Make, known: Registry) -> None:
    unwatched = make_config(**LEARNS, evaluation=watched(alarm="off"))
    Trainer(unwatched, known).train()
    path = run_path(unwatched)
    wanted = result(path)
    first = evaluated(path, "gloom")[0]
    outside = [r["iteration"] for r in evaluated(path, "gloom") if r["high"] < first["low"]]
    assert 1 < len(outside) < 4, "some evaluations, and not all, are alarming"
    shutil.rmtree(path)

    config, stops, outcome = make_config(**LEARNS, evaluation=watched(alarm="stop")), [], ""
    while outcome != "finished":
        try:
            outcome = Trainer(config, known).train(resume=bool(stops))
        except RunStopped as stopped:
            message = str(stopped)
            assert f"alarm after iteration {outside[len(stops)]}: brightness rose from " in message
            assert "(evaluation.monitors.alarm: stop; the state is saved, and --resume continues to the next" in message
            stops.append(int(newest(path).name))
            for name in ("metrics.jsonl", "timings.jsonl"):
                assert [line["iteration"] for line in logs(path, name)] == list(range(1, stops[-1] + 1))
            assert evaluated(path, "gloom")[-1]["iteration"] == stops[-1]
            assert (
                RunDirectory(path).checkpoints.newest().manifest.best_iteration
                == max(evaluated(path, "brightness"), key=lambda r: (r["value"], -r["iteration"]))["iteration"]
            )
    assert stops == outside
    assert result(path) == wanted


def test_an_alarm_remembers_the_first_evaluation_over_a_resume(make_config: Make, known: Registry) -> None:
    """Stopped before the monitor falls, it is compared with the evaluation before the stop."""
    config = make_config(**LEARNS, evaluation=watched())
    whole = Notes()
    Trainer(config, known, callbacks=[whole]).train()
    shutil.rmtree(run_path(config))
    Trainer(config, known).train(max_iterations=2)
    resumed = Notes()
    Trainer(config, known, callbacks=[resumed]).train(resume=True)
    assert whole.notes
    assert resumed.notes == whole.notes


def test_an_alarm_after_a_stop_between_an_iteration_and_its_evaluation(
    make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is there already when the alarm is raised, and must still learn which evaluation is the best."""
    config = make_config(**LEARNS, evaluation=watched(alarm="stop"))
    evaluate = Evaluator.evaluate

    def interrupted(self: Evaluator, model: Any, iteration: int, **keywords: Any) -> Any:
        if iteration == 6:
            raise Interrupted
        return evaluate(self, model, iteration, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "evaluate", interrupted)
        assert Trainer(config, known).train() == "interrupted"
    checkpoints = RunDirectory(run_path(config)).checkpoints
    assert (newest(run_path(config)).name, checkpoints.newest().manifest.best_iteration) == ("000006", 3)
    with pytest.raises(RunStopped, match="alarm after iteration 6"):
        Trainer(config, known).train(resume=True)
    assert (newest(run_path(config)).name, checkpoints.newest().manifest.best_iteration) == ("000006", 6)


# -- scores that go missing -----------------------------------------------------------------------------------------


class Flickering:
    """Leaves the first `missing` of every so many samples without a score."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.missing = 0
        score = BrightnessReward.score

        def flicker(reward: BrightnessReward, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            found = score(reward, media, prompts)
            missing = torch.arange(len(media)) < self.missing
            return Scores(found.values, missing, tuple({"reason": "too dark"} if m else {} for m in missing.tolist()))

        monkeypatch.setattr(BrightnessReward, "score", flicker)


@pytest.fixture
def flickering(monkeypatch: pytest.MonkeyPatch) -> Flickering:
    return Flickering(monkeypatch)


@pytest.mark.parametrize(
    ("missing", "limit", "reported"),
    [
        (0, 0.0, None),
        (3, 0.2, None),  # 15 %
        (4, 0.2, None),  # just as many as may
        (5, 0.2, "25%"),
        (6, 0.3, None),  # 1 - 14/20 is more than 0.3 in binary
        (14, 0.7, None),
        (1, 0.0, "5%"),
        (19, 1.0, None),
        (20, 1.0, "100%"),  # with none at all there is nothing to learn from
    ],
)
def test_the_share_that_may_be_missing(
    missing: int, limit: float, reported: str | None, make_config: Make, registry: Registry, flickering: Flickering
) -> None:
    flickering.missing = missing
    config = make_config(
        rollout={"groups": 4, "group_size": 5}, prompts={"heldout": None}, evaluation={"every": 0},
        scoring={"max_missing": limit}, checkpoints={"every": 100}, run={"iterations": 2},
    )  # fmt: skip
    path = run_path(config)
    if reported is None:
        assert Trainer(config, registry).train() == "finished"
        assert [m["missing_rewards"] for m in logs(path)] == [missing] * 2
        return
    with pytest.raises(RunStopped) as stopped:
        Trainer(config, registry).train()
    assert str(stopped.value) == (
        f"{reported} of the scores of iteration 1 are missing (limit scoring.max_missing = {limit:g}); the state is "
        "saved. "
        "brightness: too dark"
    )
    assert not (path / "metrics.jsonl").exists() or logs(path) == []
    assert newest(path).name == "000000"


def test_what_was_learned_before_is_saved_and_gone_on_from(
    make_config: Make, registry: Registry, flickering: Flickering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lamp breaks in the third iteration; mended, the run ends as if it never had."""
    config = make_config(checkpoints={"every": 100}, evaluation={"every": 0})
    path = run_path(config)
    Trainer(config, registry).train()
    wanted = result(path)
    shutil.rmtree(path)
    compute_advantages, done = module.compute_advantages, [0]

    def counted(*arguments: Any) -> Any:
        done[0] += 1
        flickering.missing = 8 if done[0] == 2 else 0
        return compute_advantages(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "compute_advantages", counted)
        with pytest.raises(RunStopped, match=r"50% of the scores of iteration 3 are missing"):
            Trainer(config, registry).train()
    assert newest(path).name == "000002"
    flickering.missing = 0
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert result(path) == wanted


def test_reasons_are_given_once_each_and_three_at_most(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the rewards that count: one without weight may fail."""

    def score(reward: BrightnessReward, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if reward.options.scale == 0.5:
            raise RuntimeError("nobody minds")
        return Scores(
            torch.zeros(len(media)),
            torch.ones(len(media), dtype=torch.bool),
            tuple({"reason": f"reason {i // 4}"} for i in range(len(media))),
        )

    monkeypatch.setattr(BrightnessReward, "score", score)
    aside = {"use": "brightness", "name": "aside", "weight": 0, "options": {"scale": 0.5}}
    config = make_config(prompts={"heldout": None}, evaluation={"every": 0}, rewards=[aside, {"use": "brightness"}])
    with pytest.raises(RunStopped) as stopped:
        Trainer(config, registry).train()
    assert str(stopped.value).endswith("saved. brightness: reason 0; brightness: reason 1; brightness: reason 2")


def test_media_that_are_broken_count_as_missing(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reward says so: it never saw anything wrong."""
    decode = ToyBackbone.decode
    monkeypatch.setattr(ToyBackbone, "decode", lambda self, x0: decode(self, x0) * torch.nan)
    config = make_config(prompts={"heldout": None}, evaluation={"every": 0})
    with pytest.raises(RunStopped, match=r"100% of the media of iteration 1 are not finite, with the base model"):
        Trainer(config, registry).train()


def test_a_monitor_that_scores_nothing_is_named(
    make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(evaluation=watched(rewards=[{"use": "gloom", "options": {"fail": "raise"}}]))
    with pytest.raises(UserError, match=r"evaluation: gloom scored none of 48 samples: gloom: .*the lamp is broken"):
        Trainer(config, known).train()


# -- what is logged -------------------------------------------------------------------------------------------------


def test_rewards_and_media_are_logged_one_by_one(
    make_config: Make, known: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numbers taken where the rewards get their media."""
    seen: list[Tensor] = []
    score = BrightnessReward.score

    def watching(self: BrightnessReward, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if type(self) is BrightnessReward:
            seen.append(media)
        return score(self, media, prompts)

    monkeypatch.setattr(BrightnessReward, "score", watching)
    compute_advantages, learned = module.compute_advantages, []

    def weighing(groups: ScoredGroups, *arguments: Any) -> Any:
        learned.append(groups.rewards)
        return compute_advantages(groups, *arguments)

    monkeypatch.setattr(module, "compute_advantages", weighing)
    config = make_config(
        run={"iterations": 2}, prompts={"heldout": None}, evaluation={"every": 0},
        rewards=[{"use": "brightness"}, {"use": "gloom", "weight": 0.5, "options": {"scale": 0.5}}],
        scoring={"aggregation": "group-normalized"},
    )  # fmt: skip
    Trainer(config, known).train()
    lines = (logs(run_path(config), name) for name in ("metrics.jsonl", "timings.jsonl"))
    for record, timing, media, total in zip(*lines, seen, learned, strict=True):
        values = media.double().mean((1, 2, 3)).numpy()
        for label, expected in (("brightness", values), ("gloom", 1 - values / 2)):
            assert record["rewards"][label] == {
                "mean": pytest.approx(expected.mean(), abs=1e-6),
                "std": pytest.approx(expected.std(), abs=1e-6),
                "missing": 0,
            }
        # What is learned from are normalized values: gloom says the opposite with half the weight, whatever its scale.
        centered = values.reshape(4, 4) - values.reshape(4, 4).mean(1, keepdims=True)
        std = centered.std(1, keepdims=True)
        assert total.numpy() == pytest.approx(centered / (std + 1e-4) - 0.25 * centered / (0.5 * std + 1e-4), abs=1e-4)
        # What people read is the weighted sum itself, which has a mean to rise.
        summed = values + 0.5 * (1 - values / 2)
        assert record["reward"]["mean"] == pytest.approx(summed.mean(), abs=1e-6)
        assert record["reward"]["std"] == pytest.approx(summed.std(), abs=1e-6)
        assert record["statistics"] == {
            name: pytest.approx(float(found.mean()), abs=1e-6) for name, found in media_statistics(media).items()
        }
        assert timing["rewards"].keys() == {"brightness", "gloom"}
        assert timing["phases"]["score"]["seconds"] == pytest.approx(sum(timing["rewards"].values()))
