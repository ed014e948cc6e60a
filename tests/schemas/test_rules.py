"""Rules between fields: each is broken once, and the message names the keys and what would be valid."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dgpo_schemas.run import RunConfig, violations


def data(**changes: Any) -> dict[str, Any]:
    """The smallest run file, with sections changed."""
    return {
        "run": {"name": "r", "iterations": 2},
        "backbone": {"use": "toy", "checkpoint": "toy"},
        "prompts": {"train": {"use": "toy"}, "heldout": {"use": "toy"}},
        "rewards": [{"use": "brightness"}],
        **changes,
    }


def monitors(*, beside: dict[str, Any] | None = None, **section: Any) -> dict[str, Any]:
    """The section evaluation.monitors, and other keys of evaluation."""
    return {"evaluation": {"monitors": section, **(beside or {})}}


def many_step(**section: Any) -> dict[str, Any]:
    """The section evaluation.many_step."""
    return {"evaluation": {"many_step": section}}


def broken(**changes: Any) -> list[tuple[str, str]]:
    """(key, message) of what pydantic carries."""
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(data(**changes))
    (error,) = caught.value.errors()
    found: list[tuple[str, str]] = error["ctx"]["violations"]
    return found


def test_the_smallest_run_file_breaks_no_rule() -> None:
    assert violations(RunConfig.model_validate(data())) == []


@pytest.mark.parametrize(
    ("rollout", "best"),
    [
        ({"group_size": 8, "explore": {"candidates": 8, "steps": 10}}, 4),
        ({"group_size": 3, "explore": {"candidates": 16, "steps": 1}}, 1),
        ({"group_size": 8, "explore": {"candidates": 16, "steps": 2, "best": 7}}, 7),
        ({"group_size": 2, "explore": {"candidates": 2, "steps": 1, "best": 1}}, 1),
    ],
)
def test_candidates_that_are_possible(rollout: dict[str, Any], best: int) -> None:
    config = RunConfig.model_validate(data(rollout=rollout))
    assert violations(config) == []
    assert config.rollout.best == best


def test_times_whose_order_depends_on_the_models_shift_are_left_to_the_run() -> None:
    section = {"timesteps": {"t_min": "shift(0.6)", "t_max": 0.7}}
    assert violations(RunConfig.model_validate(data(**section))) == []


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        (
            {"rollout": {"group_size": 1}},
            "rollout.group_size",
            ["must be at least 2, got 1"],
        ),
        (
            {"rollout": {"group_size": 8, "explore": {"candidates": 6, "steps": 2}}},
            "rollout.explore.candidates",
            ["6 candidates are too few for groups of rollout.group_size = 8", "use at least 8, or more"],
        ),
        (
            {"rollout": {"group_size": 8, "groups": 2000, "explore": {"candidates": 5001, "steps": 2}}},
            "rollout.explore.candidates",
            ["5001 for each of 2000 groups are more than 10000000 samples", "use at most 5000"],
        ),
        (
            {"rollout": {"group_size": 8, "explore": {"candidates": 16, "steps": 2, "best": 8}}},
            "rollout.explore.best",
            ["must be from 1 to 7, one less than rollout.group_size", "got 8", "the nearest is 7"],
        ),
        (
            {"rollout": {"steps": 4, "explore": {"candidates": 32, "steps": 5}}},
            "rollout.explore.steps",
            ["5 steps per candidate are more than rollout.steps = 4", "use at most 4"],
        ),
        ({"precision": {"adapter": "fast"}}, "precision.adapter", ["backbone.dtype: bfloat16"]),
        (
            {
                "precision": {"adapter": "fast"},
                "backbone": {"use": "toy", "checkpoint": "toy", "dtype": "bfloat16", "lora": {"dora": True}},
            },
            "precision.adapter",
            ["not possible with backbone.lora.dora"],
        ),
        (
            {
                "precision": {"adapter": "fast"},
                "backbone": {"use": "toy", "checkpoint": "toy", "dtype": "bfloat16", "train": "full"},
            },
            "precision.adapter",
            ["no effect because backbone.train is full"],
        ),
        (
            {"precision": {"norms": "fast", "autocast": "bf16"}},
            "precision.norms",
            ["no effect", "backbone.dtype is float32", "auto or exact"],
        ),
        (
            {
                "precision": {"norms": "fast", "autocast": "bf16"},
                "backbone": {"use": "toy", "checkpoint": "toy", "dtype": "bfloat16", "train": "full"},
            },
            "precision.norms",
            ["the weights are trained"],
        ),
        ({"rollout": {"group_size": -3}}, "rollout.group_size", ["must be at least 2"]),
        ({"rollout": {"resolution": 0}}, "rollout.resolution", ["got 0", "at least 1"]),
        ({"rollout": {"resolution": [64, -8]}}, "rollout.resolution", ["got -8"]),
        ({"rollout": {"resolution": [64, 10**9]}}, "rollout.resolution", ["at most 16384 pixels", "got 1000000000"]),
        (
            {"rollout": {"groups": 100_000, "group_size": 3000}},
            "rollout.groups",
            ["more than 10000000 samples", "at most 3333 groups"],
        ),
        (
            {"rollout": {"groups": 24}, "optimizer": {"updates": 5}},
            "optimizer.updates",
            ["5 does not divide rollout.groups = 24", "4 and 6"],
        ),
        ({"rollout": {"groups": 7}, "optimizer": {"updates": 3}}, "optimizer.updates", ["1 and 7"]),
        ({"stop": {"target": 0.5}}, "stop.target", ["evaluation.every is 0"]),
        (
            {"stop": {"target": 0.5}, "prompts": {"train": {"use": "toy"}}},
            "stop.target",
            ["requires held-out prompts; set prompts.heldout"],
        ),
        ({"stop": {"reward": "brightness"}}, "stop.reward", ["has no effect without stop.target"]),
        ({"stop": {"in_a_row": 3}}, "stop.in_a_row", ["has no effect without stop.target"]),
        (
            {"stop": {"target": 0.5, "reward": "shine"}, "evaluation": {"every": 2}},
            "stop.reward",
            ["no evaluated reward is named 'shine'; known: brightness"],
        ),
        ({"rollout": {"groups": 4}, "optimizer": {"updates": 9}}, "optimizer.updates", ["2 and 4"]),
        (
            {"rollout": {"shift": 3}, "timesteps": {"t_min": "shift(0.6)", "t_max": 0.7}},
            "timesteps.t_min",
            ["shift(0.6) (sigma 0.8182)", "must be below t_max = 0.7"],
        ),
        (
            {"timesteps": {"t_min": "shift(0.6)", "t_max": "shift(0.5)"}},
            "timesteps.t_min",
            ["shift(0.6) must be below t_max = shift(0.5); 1 is noise"],
        ),
        ({"timesteps": {"t_min": "shift(1)"}}, "timesteps.t_min", ["shift(1) must be below t_max = 1.0"]),
        ({"timesteps": {"t_min": 0.5, "t_max": 0.5}}, "timesteps.t_min", ["must be below t_max"]),
        (
            {"rollout": {"guidance": 4.5}, "objective": {"kl_cfg": 4.5}},
            "objective.kl_cfg",
            ["rollout.guidance = 4.5", "mode 1: kl_cfg 1", "mode 2a: rollout.guidance 1"],
        ),
        (
            {"objective": {"kl_cfg": 4.5, "reference": "ema_fast", "kl": 0}},
            "objective.kl_cfg",
            ["has no effect", "objective.kl is 0", "mode 2a"],
        ),
        (
            {"rollout": {"guidance": 2}, "objective": {"reference": "ema_fast"}},
            "rollout.guidance",
            ["mode 2b: rollout.guidance 1", "reference: frozen (mode 1)"],
        ),
        (
            {"rewards": [{"use": "a"}, {"use": "b", "name": "a"}]},
            "rewards.1",
            ["the name 'a' is already used by another reward", "another `name`"],
        ),
        ({"evaluation": {"rewards": [{"use": "a"}, {"use": "a"}]}}, "evaluation.rewards.1", ["another reward"]),
        *(
            (
                {"rewards": [{"use": "a"}, {"use": "b", "name": taken}]},
                "rewards.1",
                [f"the name {taken!r} is already used by an image statistic", "another `name`"],
            )
            for taken in ("diversity", "saturation", "edge_density", "dark_pixels")
        ),
        ({"evaluation": {"rewards": [{"use": "saturation"}]}}, "evaluation.rewards.0", ["an image statistic"]),
        (monitors(rewards=[{"use": "diversity"}]), "evaluation.monitors.rewards.0", ["an image statistic"]),
        (
            monitors(rewards=[{"use": "a"}, {"use": "a"}]),
            "evaluation.monitors.rewards.1",
            ["the name 'a' is already used by another reward"],
        ),
        (
            monitors(rewards=[{"use": "brightness"}]),
            "evaluation.monitors.rewards.0",
            ["the name 'brightness' is already used by another reward", "another `name`"],
        ),
        (  # a monitor is not trained on, even where evaluation looks at another reward
            monitors(rewards=[{"use": "brightness"}], beside={"rewards": [{"use": "a"}]}),
            "evaluation.monitors.rewards.0",
            ["the name 'brightness' is already used by another reward"],
        ),
        (
            monitors(rewards=[{"use": "a"}], beside={"rewards": [{"use": "b"}, {"use": "a"}]}),
            "evaluation.monitors.rewards.0",
            ["the name 'a' is already used by another reward"],
        ),
        (
            monitors(rewards=[{"use": "aesthetic"}], tolerances={"aesthetics": 0.1}),
            "evaluation.monitors.tolerances.aesthetics",
            [
                "unknown monitor 'aesthetics'",
                "the monitors are aesthetic, diversity, saturation, edge_density, dark_pixels",
            ],
        ),
        (
            monitors(tolerances={"brightness": 0.1}),
            "evaluation.monitors.tolerances.brightness",
            ["unknown monitor 'brightness'"],
        ),
        (
            monitors(tolerances={"many_step_sharpness": 0.1}),
            "evaluation.monitors.tolerances.many_step_sharpness",
            ["measured only if evaluation.many_step is set"],
        ),
        (
            {"evaluation": {"many_step": {"steps": 40}}, "prompts": {"train": {"use": "toy"}}},
            "evaluation.many_step",
            ["set prompts.heldout"],
        ),
        (
            monitors(rewards=[{"use": "a"}]) | {"prompts": {"train": {"use": "toy"}}},
            "evaluation.monitors.rewards",
            ["set prompts.heldout"],
        ),
        ({"rewards": [{"use": "a", "weight": 0}]}, "rewards", ["all weights are 0"]),
        (
            {"evaluation": {"every": 5}, "prompts": {"train": {"use": "toy"}}},
            "evaluation.every",
            ["set prompts.heldout, or set every to 0"],
        ),
        (
            {"evaluation": {"rewards": [{"use": "a"}]}, "prompts": {"train": {"use": "toy"}}},
            "evaluation.rewards",
            ["set prompts.heldout"],
        ),
        ({"objective": {"kl": 0, "clip_kl": True}}, "objective.clip_kl", ["objective.kl is 0", "set it to false"]),
        ({"objective": {"clip": None, "clip_kl": True}}, "objective.clip_kl", ["objective.clip is null"]),
        (
            {"backbone": {"use": "toy", "checkpoint": "toy", "train": "full", "lora": {"rank": 4}}},
            "backbone.lora",
            ["backbone.train is full", "remove one of the two"],
        ),
    ],
)
def test_a_broken_rule(changes: dict[str, Any], key: str, says: list[str]) -> None:
    ((found, message),) = broken(**changes)
    assert found == key
    for part in says:
        assert part in message


@pytest.mark.parametrize(
    ("changes", "where", "message"),
    [
        (
            monitors(tolerances={"saturation": -0.1}),
            ("evaluation", "monitors", "tolerances", "saturation"),
            "greater than or equal",
        ),
        (monitors(alarm="loud"), ("evaluation", "monitors", "alarm"), "'log', 'stop' or 'off'"),
        (many_step(steps=1), ("evaluation", "many_step", "steps"), "greater than or equal to 2"),
        (many_step(steps=1001), ("evaluation", "many_step", "steps"), "less than or equal to 1000"),
        (many_step(steps=True), ("evaluation", "many_step", "steps"), "must be a number"),
        (many_step(steps=40, prompts=0), ("evaluation", "many_step", "prompts"), "greater than or equal to 1"),
        (many_step(prompts=8), ("evaluation", "many_step", "steps"), "Field required"),
        (many_step(steps=40, samples=2), ("evaluation", "many_step", "samples"), "Extra inputs"),
        ({"scoring": {"max_missing": 1.5}}, ("scoring", "max_missing"), "less than or equal to 1"),
        ({"scoring": {"max_missing": -0.1}}, ("scoring", "max_missing"), "greater than or equal to 0"),
        ({"scoring": {"aggregation": "mean"}}, ("scoring", "aggregation"), "'weighted-sum' or 'group-normalized'"),
    ],
)
def test_values_out_of_bounds(changes: dict[str, Any], where: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(data(**changes))
    (error,) = caught.value.errors()
    assert error["loc"] == where
    assert message in error["msg"]


def test_all_broken_rules_are_reported_together() -> None:
    found = broken(
        rollout={"group_size": 1, "groups": 3}, optimizer={"updates": 2}, rewards=[{"use": "a", "weight": 0}]
    )
    assert [key for key, _ in found] == ["rollout.group_size", "optimizer.updates", "rewards"]


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout": {"guidance": 4.5}},  # mode 1
        {"objective": {"kl_cfg": 4.5}},  # mode 2a
        {"objective": {"reference": "ema_fast", "beta": 3000}},  # mode 2b
        {"objective": {"reference": "ema_fast", "beta": 3000, "kl_cfg": 4.5}},  # the KL term's base is guided
        {"rollout": {"groups": 24}, "optimizer": {"updates": 24}},
        {"rewards": [{"use": "a"}, {"use": "b", "weight": 0}]},
        {"prompts": {"train": {"use": "toy"}}},
        monitors(rewards=[{"use": "a"}, {"use": "a", "name": "b"}], tolerances={"a": 0, "b": 0.5, "diversity": 0.1}),
        monitors(rewards=[{"use": "brightness", "name": "again", "options": {"scale": 0.5}}]),
        many_step(steps=2),
        monitors(
            tolerances={"step_disagreement": 0.1, "many_step_sharpness": 0},
            beside={"many_step": {"steps": 1000, "prompts": 1}},
        ),
        {"rollout": {"group_size": 2, "resolution": [64, 96]}},
        {"stop": {"target": 0.5, "reward": "b", "seconds": 3}, "evaluation": {"every": 1, "rewards": [{"use": "b"}]}},
    ],
)
def test_what_is_allowed(changes: dict[str, Any]) -> None:
    assert violations(RunConfig.model_validate(data(**changes))) == []


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_written_run_file_can_be_read_again(train: str) -> None:
    config = RunConfig.model_validate(data(backbone={"use": "toy", "checkpoint": "toy", "train": train}))
    written = config.model_dump(mode="json")
    assert RunConfig.model_validate(written) == config
    assert ("lora" in written["backbone"]) == (train == "lora")
