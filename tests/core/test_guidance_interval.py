"""Guidance that is limited to an interval of sigma: which steps are guided, what they cost, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.contracts import VelocityFn
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import PluginError, UserError
from dgpo_core.flow.velocity import guidance_at
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import Engine, build_engine
from dgpo_core.types import Prompt, SampleResult, Schedule
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
DOUBLE: dict[str, Any] = {"options": {"double": True}}
PROMPTS = [Prompt("a"), Prompt("b")]


def engine_of(
    make_config: Make, registry: Registry, evaluation: dict[str, Any] | None = None, **rollout: Any
) -> Engine:
    return build_engine(make_config(backbone=DOUBLE, rollout=rollout, evaluation=evaluation or {}), registry)


def passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the number of rows of each pass of the network."""
    seen: list[int] = []
    velocity = engine.backbone.velocity

    def counting(x_sigma: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        seen.append(len(x_sigma))
        return velocity(x_sigma, sigma, conditioning)

    monkeypatch.setattr(engine.backbone, "velocity", counting)
    return seen


@pytest.mark.parametrize(
    ("interval", "guided"),
    [([0.3, 0.8], [1, 2]), ([0, 1], [0, 1, 2, 3, 4]), ([0.4, 1], [0, 1, 2]), ([0.0, 0.1], [4])],
)
def test_samples_are_those_of_a_loop(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch, interval: list[float], guided: list[int]
) -> None:
    """Euler steps in float64 with explicit guidance; times 1, 0.75, 0.5, 0.25, 0.001."""
    engine = engine_of(
        make_config, registry, sampler="flow-euler", steps=5, shift=1.0, guidance=3.0, guidance_interval=interval
    )
    backbone, seen = engine.backbone, passes(engine, monkeypatch)
    sampler = engine.rollout_sampler()
    (rollout,) = sampler.sample_groups(PROMPTS, 1, Draws(4), "policy")
    assert seen == [4 if i in guided else 2 for i in range(5)]
    sized = engine.sized(PROMPTS)
    keys = [Draws(4).at(g, 0).at("noise") for g in range(2)]
    x = normal_rows(keys, sampler.shape, "cpu")
    rows, free = backbone.encode(sized), backbone.unconditional(sized)
    times = engine.sampler.sigmas(5, engine.times.schedule).tolist()
    with torch.no_grad():
        for i, (sigma, after) in enumerate(pairwise(times)):
            time = torch.full((2,), sigma)
            v = backbone.velocity(x, time, rows)
            if i in guided:
                v_u = backbone.velocity(x, time, free)
                v = v_u + 3.0 * (v - v_u)
            x = x + (after - sigma) * v
    torch.testing.assert_close(rollout.x0, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", ["flow-euler", "flow-dpmpp"])
def test_an_interval_of_all_times_changes_nothing(make_config: Make, registry: Registry, sampler: str) -> None:
    settings: dict[str, Any] = {"sampler": sampler, "guidance": 3.0}
    whole, limited = (
        torch.cat([
            r.x0
            for r in engine_of(make_config, registry, **settings, **more)
            .rollout_sampler()
            .sample_groups(PROMPTS, 2, Draws(4), "policy")
        ])
        for more in ({}, {"guidance_interval": [0, 1]})
    )  # fmt: skip
    assert torch.equal(whole, limited)


def test_ends_are_compared_as_the_model_sees_them() -> None:
    """0.7 is below 0.7 in float32 and 0.9 above: both ends belong to the interval all the same."""
    assert float(torch.tensor(0.7)) < 0.7
    for sigma in (0.7, float(torch.tensor(0.7)), 0.9, float(torch.tensor(0.9)), 0.8):
        assert guidance_at(sigma, 4.5, [0.7, 0.9]) == 4.5
    for sigma in (0.6999, 0.9001, 0.0, 1.0):
        assert guidance_at(sigma, 4.5, [0.7, 0.9]) == 1.0
        assert guidance_at(sigma, 4.5, None) == 4.5


def test_evaluations_use_the_interval_of_the_rollouts_unless_they_have_their_own(
    make_config: Make, registry: Registry
) -> None:
    rollout = {"guidance": 3.0, "guidance_interval": [0.3, 0.9]}
    for evaluation, expected in (({}, [0.3, 0.9]), ({"guidance_interval": [0, 1]}, [0.0, 1.0])):
        engine = engine_of(make_config, registry, evaluation, **rollout)
        assert engine.evaluation_rollout_sampler().guidance_interval == expected
        assert engine.rollout_sampler().guidance_interval == [0.3, 0.9]


@pytest.mark.parametrize(
    ("rollout", "evaluation", "message"),
    [
        ({"guidance_interval": [0.3, 0.9]}, {},
         "rollout.guidance_interval: has no effect because rollout.guidance is 1; set it above 1, or remove this key"),
        ({"guidance": 3, "guidance_interval": [0.9, 0.3]}, {},
         "rollout.guidance_interval: [0.9, 0.3]: the first must be below the second, [low, high]; 1 is noise"),
        ({"guidance": 3}, {"guidance": 1, "guidance_interval": [0, 1]},
         "evaluation.guidance_interval: has no effect because evaluation.guidance is 1"),
        ({}, {"guidance_interval": [0, 1]},
         "evaluation.guidance_interval: has no effect because rollout.guidance is 1"),
        ({"guidance": 3, "guidance_interval": [0.3, 1.5]}, {}, "less than or equal to 1"),
        ({"guidance": 3, "guidance_interval": [0.3]}, {}, "at least 2 items"),
    ],
)  # fmt: skip
def test_intervals_without_effect_are_refused(
    make_config: Make, rollout: dict[str, Any], evaluation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        make_config(rollout=rollout, evaluation=evaluation)
    assert message in str(refused.value)


def test_an_interval_without_steps_is_refused_before_the_run(make_config: Make, registry: Registry) -> None:
    settings: dict[str, Any] = {"sampler": "flow-euler", "steps": 2, "shift": 1.0, "guidance": 3.0}
    engine = engine_of(make_config, registry, **settings, guidance_interval=[0.3, 0.9])
    with pytest.raises(UserError) as refused:
        engine.rollout_sampler()
    assert str(refused.value) == (
        "rollout.guidance_interval: none of the sampler's 2 times (1, 0.001) in 2 steps is in [0.3, 0.9], so nothing "
        "would be guided; widen the interval, or set guidance to 1"
    )
    engine.rollout_sampler(guidance=1.0)
    engine = engine_of(make_config, registry, {"guidance_interval": [0.3, 0.9]}, **settings)
    with pytest.raises(UserError, match=r"^evaluation\.guidance_interval: none of the sampler's 2 times"):
        engine.evaluation_rollout_sampler()


def test_a_rounding_of_another_device_changes_no_decision() -> None:
    """A time an ulp of float32 outside of an end is decided as the end is; one that can be told apart is not."""
    ends = torch.tensor([0.7, 0.9])
    around = [torch.nextafter(ends, torch.full_like(ends, far)).tolist() for far in (0.0, 1.0)]
    assert [guidance_at(sigma, 4.5, [0.7, 0.9]) for pair in around for sigma in pair] == [4.5] * 4
    assert [guidance_at(sigma, 4.5, [0.7, 0.9]) for sigma in (0.7 - 1e-5, 0.9 + 1e-5)] == [1.0, 1.0]


class Elsewhere(FlowEuler):
    """Moves the times of a rollout, not those of the trial on zeros, as another device rounds them, or by more."""

    def __init__(self, by: float) -> None:
        super().__init__(None)
        self.by = by

    def sample(self, velocity: VelocityFn, noise: Tensor, **more: Any) -> SampleResult:
        moved = bool(noise.abs().max() > 0)

        def elsewhere(x: Tensor, sigma: Tensor) -> Tensor:
            ulp = torch.nextafter(sigma, torch.zeros_like(sigma)) - sigma
            return velocity(x, sigma + moved * (self.by if self.by else ulp))

        return super().sample(elsewhere, noise, **more)


@pytest.mark.parametrize("by", [0.0, -1e-5, -1e-3], ids=["an ulp", "1e-5", "1e-3"])
def test_times_are_compared_up_to_roundings(make_config: Make, registry: Registry, by: float) -> None:
    """0.75 is an end of the interval: an ulp below it, the step is guided all the same."""
    engine = engine_of(
        make_config, registry, sampler="flow-euler", steps=5, shift=1.0, guidance=3.0, guidance_interval=[0.75, 1]
    )
    drawn = engine.rollout_sampler(sampler=Elsewhere(by)).sample_groups(PROMPTS, 1, Draws(0), "policy")
    if by:
        with pytest.raises(PluginError, match="not possible with Elsewhere, whose times depend on the samples"):
            list(drawn)
        return
    exact = engine.rollout_sampler().sample_groups(PROMPTS, 1, Draws(0), "policy")
    assert_close(*(torch.cat([rollout.x0 for rollout in found]) for found in (drawn, exact)), atol=1e-5, rtol=0)


class Adaptive(FlowEuler):
    """Takes a step less if the samples are large."""

    def sample(
        self,
        velocity: VelocityFn,
        noise: Tensor,
        *,
        steps: int,
        schedule: Schedule,
        draws: Sequence[Draws] = (),
        keep_path: bool = False,
    ) -> SampleResult:
        steps -= int(bool(noise.abs().max() > 0))
        return super().sample(velocity, noise, steps=steps, schedule=schedule)


def test_samplers_whose_times_depend_on_the_samples_are_refused(make_config: Make, registry: Registry) -> None:
    engine = engine_of(make_config, registry, guidance=3.0, guidance_interval=[0, 0.95])
    with pytest.raises(PluginError, match="not possible with Adaptive, whose times depend on the samples"):
        list(engine.rollout_sampler(sampler=Adaptive(None)).sample_groups(PROMPTS, 1, Draws(0), "policy"))
