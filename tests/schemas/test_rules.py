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


def guards(*, beside: dict[str, Any] | None = None, **section: Any) -> dict[str, Any]:
    """The section evaluation.guards, and other keys of evaluation."""
    return {"evaluation": {"guards": section, **(beside or {})}}


def finer(**section: Any) -> dict[str, Any]:
    """The section evaluation.finer."""
    return {"evaluation": {"finer": section}}


def broken(**changes: Any) -> list[tuple[str, str]]:
    """(key, message) of what pydantic carries."""
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(data(**changes))
    (error,) = caught.value.errors()
    found: list[tuple[str, str]] = error["ctx"]["violations"]
    return found


def test_the_smallest_run_file_breaks_no_rule() -> None:
    assert violations(RunConfig.model_validate(data())) == []


def test_times_whose_order_depends_on_the_models_shift_are_left_to_the_run() -> None:
    section = {"timesteps": {"t_min": "shift(0.6)", "t_max": 0.7}}
    assert violations(RunConfig.model_validate(data(**section))) == []


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        (
            {"rollout": {"group_size": 1}},
            "rollout.group_size",
            ["a group of 1 has nothing to compare with", "the smallest is 2"],
        ),
        ({"rollout": {"group_size": -3}}, "rollout.group_size", ["the smallest is 2"]),
        ({"rollout": {"resolution": 0}}, "rollout.resolution", ["0 is no size", "at least 1"]),
        ({"rollout": {"resolution": [64, -8]}}, "rollout.resolution", ["-8 is no size"]),
        ({"rollout": {"resolution": [64, 10**9]}}, "rollout.resolution", ["1000000000 pixels are too many", "16384"]),
        (
            {"rollout": {"groups": 100_000, "group_size": 3000}},
            "rollout.groups",
            ["more than 10000000 samples", "at most 3333 such groups"],
        ),
        (
            {"rollout": {"groups": 24}, "optimiser": {"updates": 5}},
            "optimiser.updates",
            ["5 does not divide rollout.groups = 24", "4 and 6"],
        ),
        ({"rollout": {"groups": 7}, "optimiser": {"updates": 3}}, "optimiser.updates", ["1 and 7"]),
        ({"stop": {"target": 0.5}}, "stop.target", ["set evaluation.every, which is 0"]),
        (
            {"stop": {"target": 0.5}, "prompts": {"train": {"use": "toy"}}},
            "stop.target",
            ["needs held-out prompts: set prompts.heldout"],
        ),
        ({"stop": {"reward": "brightness"}}, "stop.reward", ["there is no stop.target that it could be about"]),
        (
            {"stop": {"target": 0.5, "reward": "shine"}, "evaluation": {"every": 2}},
            "stop.reward",
            ["nothing evaluated is called 'shine'; there is brightness"],
        ),
        ({"rollout": {"groups": 4}, "optimiser": {"updates": 9}}, "optimiser.updates", ["2 and 4"]),
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
            {"objective": {"kl_cfg": 4.5, "reference": "ema", "kl": 0}},
            "objective.kl_cfg",
            ["nothing is compared", "objective.kl is 0", "mode 2a"],
        ),
        (
            {"rollout": {"guidance": 2}, "objective": {"reference": "ema"}},
            "rollout.guidance",
            ["mode 2b: rollout.guidance 1", "mode 1: reference frozen"],
        ),
        (
            {"rewards": [{"use": "a"}, {"use": "b", "name": "a"}]},
            "rewards.1",
            ["two rewards are called 'a'", "another `name`"],
        ),
        ({"evaluation": {"rewards": [{"use": "a"}, {"use": "a"}]}}, "evaluation.rewards.1", ["two rewards"]),
        *(
            (
                {"rewards": [{"use": "a"}, {"use": "b", "name": taken}]},
                "rewards.1",
                [f"a statistic of the media and a reward are called {taken!r}", "another `name`"],
            )
            for taken in ("diversity", "saturation", "edge_density", "dark_pixels")
        ),
        ({"evaluation": {"rewards": [{"use": "saturation"}]}}, "evaluation.rewards.0", ["a statistic of the media"]),
        (guards(rewards=[{"use": "diversity"}]), "evaluation.guards.rewards.0", ["a statistic of the media"]),
        (guards(rewards=[{"use": "a"}, {"use": "a"}]), "evaluation.guards.rewards.1", ["two rewards are called 'a'"]),
        (
            guards(rewards=[{"use": "brightness"}]),
            "evaluation.guards.rewards.0",
            ["two rewards are called 'brightness'", "another `name`"],
        ),
        (  # a guard is not trained on, even where evaluation looks at another reward
            guards(rewards=[{"use": "brightness"}], beside={"rewards": [{"use": "a"}]}),
            "evaluation.guards.rewards.0",
            ["two rewards are called 'brightness'"],
        ),
        (
            guards(rewards=[{"use": "a"}], beside={"rewards": [{"use": "b"}, {"use": "a"}]}),
            "evaluation.guards.rewards.0",
            ["two rewards are called 'a'"],
        ),
        (
            guards(rewards=[{"use": "aesthetic"}], bands={"aesthetics": 0.1}),
            "evaluation.guards.bands.aesthetics",
            [
                "there is no guard 'aesthetics'",
                "the guards are aesthetic, diversity, saturation, edge_density, dark_pixels",
            ],
        ),
        (guards(bands={"brightness": 0.1}), "evaluation.guards.bands.brightness", ["there is no guard 'brightness'"]),
        (
            guards(bands={"finer_sharpness": 0.1}),
            "evaluation.guards.bands.finer_sharpness",
            ["only measured where evaluation.finer is set"],
        ),
        (
            {"evaluation": {"finer": {"steps": 40}}, "prompts": {"train": {"use": "toy"}}},
            "evaluation.finer",
            ["without prompts.heldout"],
        ),
        (
            guards(rewards=[{"use": "a"}]) | {"prompts": {"train": {"use": "toy"}}},
            "evaluation.guards.rewards",
            ["without prompts.heldout"],
        ),
        ({"rewards": [{"use": "a", "weight": 0}]}, "rewards", ["every weight is 0"]),
        (
            {"evaluation": {"every": 5}, "prompts": {"train": {"use": "toy"}}},
            "evaluation.every",
            ["set prompts.heldout, or every to 0"],
        ),
        (
            {"evaluation": {"rewards": [{"use": "a"}]}, "prompts": {"train": {"use": "toy"}}},
            "evaluation.rewards",
            ["without prompts.heldout"],
        ),
        ({"objective": {"kl": 0, "clip_kl": True}}, "objective.clip_kl", ["objective.kl is 0", "set false"]),
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
        (guards(bands={"saturation": -0.1}), ("evaluation", "guards", "bands", "saturation"), "greater than or equal"),
        (guards(alarm="loud"), ("evaluation", "guards", "alarm"), "'log', 'stop' or 'off'"),
        (finer(steps=1), ("evaluation", "finer", "steps"), "greater than or equal to 2"),
        (finer(steps=1001), ("evaluation", "finer", "steps"), "less than or equal to 1000"),
        (finer(steps=True), ("evaluation", "finer", "steps"), "a number is expected"),
        (finer(steps=40, prompts=0), ("evaluation", "finer", "prompts"), "greater than or equal to 1"),
        (finer(prompts=8), ("evaluation", "finer", "steps"), "Field required"),
        (finer(steps=40, samples=2), ("evaluation", "finer", "samples"), "Extra inputs"),
        ({"scoring": {"max_missing": 1.5}}, ("scoring", "max_missing"), "less than or equal to 1"),
        ({"scoring": {"max_missing": -0.1}}, ("scoring", "max_missing"), "greater than or equal to 0"),
        ({"scoring": {"aggregation": "mean"}}, ("scoring", "aggregation"), "'weighted-sum' or 'group-normalised'"),
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
        rollout={"group_size": 1, "groups": 3}, optimiser={"updates": 2}, rewards=[{"use": "a", "weight": 0}]
    )
    assert [key for key, _ in found] == ["rollout.group_size", "optimiser.updates", "rewards"]


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout": {"guidance": 4.5}},  # mode 1
        {"objective": {"kl_cfg": 4.5}},  # mode 2a
        {"objective": {"reference": "ema", "beta": 3000}},  # mode 2b
        {"objective": {"reference": "ema", "beta": 3000, "kl_cfg": 4.5}},  # the KL term's base is guided
        {"rollout": {"groups": 24}, "optimiser": {"updates": 24}},
        {"rewards": [{"use": "a"}, {"use": "b", "weight": 0}]},
        {"prompts": {"train": {"use": "toy"}}},
        guards(rewards=[{"use": "a"}, {"use": "a", "name": "b"}], bands={"a": 0, "b": 0.5, "diversity": 0.1}),
        guards(rewards=[{"use": "brightness", "name": "again", "options": {"scale": 0.5}}]),
        finer(steps=2),
        guards(bands={"step_disagreement": 0.1, "finer_sharpness": 0}, beside={"finer": {"steps": 1000, "prompts": 1}}),
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
