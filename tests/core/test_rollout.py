"""Rollouts: which key a sample's noise comes from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import Adapter
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import Engine, build_engine
from dgpo_core.training.policy import ModelName
from dgpo_core.types import Prompt
from dgpo_kit.toy import ToyAdapter
from dgpo_schemas.run import RunConfig

MODELS: tuple[ModelName, ...] = ("base", "policy", "ema_fast")
Make = Callable[..., RunConfig]


@pytest.fixture
def engine(make_config: Make, registry: Registry) -> Engine:
    return build_engine(make_config(backbone={"options": {"double": True}}), registry)


def drawn(engine: Engine, prompts: list[int], members: int, micro_batch: int = 100, **places: list[int]) -> Tensor:
    """x0 of the train prompts of these numbers."""
    chosen = [engine.load_prompts("train")[i] for i in prompts]
    rollout_sampler = engine.rollout_sampler(micro_batch=micro_batch)
    rollouts = list(rollout_sampler.sample_groups(chosen, members, Draws(8), "policy", **places))
    assert [r.samples[0] for r in rollouts] == list(range(0, len(prompts) * members, micro_batch))
    assert [p.text for r in rollouts for p in r.prompts] == [p.text for p in chosen for _ in range(members)]
    return torch.cat([r.x0 for r in rollouts])


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
def test_places_are_those_of_a_larger_rollout(engine: Engine, micro_batch: int) -> None:
    """Some groups of a rollout can be drawn again by themselves, any number of their members."""
    whole = drawn(engine, [0, 1, 2, 3, 4], 3).view(5, 3, -1)
    some = drawn(engine, [1, 4], 2, micro_batch, places=[1, 4]).view(2, 2, -1)
    torch.testing.assert_close(some, whole[[1, 4], :2], rtol=0, atol=1e-12)
    elsewhere = drawn(engine, [1, 4], 2, micro_batch).view(2, 2, -1)
    assert not torch.allclose(elsewhere, whole[[1, 4], :2], atol=1e-3)


def test_without_places_groups_are_numbered(engine: Engine) -> None:
    assert torch.equal(drawn(engine, [2, 0, 5], 2), drawn(engine, [2, 0, 5], 2, places=[0, 1, 2]))


# -- with the adapter merged ------------------------------------------------------------------------------------------


def test_merged_samples_are_the_same_up_to_rounding(make_config: Make, registry: Registry) -> None:
    """Of every view; the base has nothing to merge."""
    for train_more in ({}, {"rollout": {"merge_adapter": True}}):
        engine = build_engine(make_config(backbone={"options": {"double": True}}, **train_more), registry)
        with torch.no_grad():
            for i, (name, parameter) in enumerate(sorted(engine.policy.parameters.items())):
                if "up" in name:
                    parameter += normal_rows([Draws(i)], tuple(parameter.shape), parameter.device)[0].double()
        found = {
            model: torch.cat(
                [
                    r.x0
                    for r in engine.rollout_sampler().sample_groups(
                        engine.load_prompts("train")[:2], 2, Draws(8), model
                    )
                ]
            )
            for model in MODELS
        }
        if not train_more:
            plain = found
    for model in MODELS:
        torch.testing.assert_close(found[model], plain[model], rtol=0, atol=1e-12)
    assert not torch.allclose(plain["policy"], plain["base"], atol=1e-3), "there must be something to merge"


def test_a_backbone_that_cannot_merge(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyAdapter, "merged", Adapter.merged)
    with pytest.raises(UserError, match=r"rollout\.merge_adapter: backbone: toy cannot merge its adapter"):
        build_engine(make_config(rollout={"merge_adapter": True}), registry).rollout_sampler()


def test_nothing_to_merge(make_config: Make) -> None:
    with pytest.raises(ValueError, match=r"rollout\.merge_adapter: has no effect because backbone\.train is full"):
        make_config(rollout={"merge_adapter": True}, backbone={"use": "toy", "train": "full", "lora": {}})


# -- what rewards are told --------------------------------------------------------------------------------------------


def test_prompts_of_samples_have_the_size_and_the_frames_a_second(
    make_config: Make, registry: Registry, film: object
) -> None:
    registry.register(film, distribution="film")
    for backbone, fps in (("toy", None), ("film", 12.5)):
        engine = build_engine(make_config(backbone={"use": backbone}), registry)
        (rollout,) = engine.rollout_sampler().sample_groups(engine.load_prompts("train")[:2], 1, Draws(0), "policy")
        assert [(prompt.size, prompt.fps) for prompt in rollout.prompts] == [((8, 8), fps)] * 2
        assert [prompt.fps for prompt in engine.sized(engine.load_prompts("train")[:2])] == [fps] * 2
    own = Prompt("x", size=(4, 8), fps=30.0)
    assert own.sized((8, 8), 12.5) is own
    assert (Prompt("x", fps=30.0).sized((8, 8), 12.5).fps, Prompt("x", size=(4, 8)).sized((8, 8), 1.0).size) == (
        30.0, (4, 8),
    )  # fmt: skip
