"""Weights of training times: formulas and means in closed form, the loss by hand, what is measured and resumed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import integrate
from torch import Tensor

from dgpo_core.builtin.inverse_dsm import InverseDsm
from dgpo_core.builtin.options import InverseDsmOptions, StratifiedOptions, WeightedOptions
from dgpo_core.builtin.samplers import FlowDPMSolverPP, FlowEuler
from dgpo_core.builtin.time_weights import WeightedTimes, step_noise
from dgpo_core.builtin.timesteps import SamplerSteps, StratifiedTimesteps, UniformTimesteps
from dgpo_core.builtin.weightings import AbsAdvantage
from dgpo_core.contracts import Probe, TimestepContext, TimestepPolicy
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.times import draw_times
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Schedule
from dgpo_kit.contracts import check_timesteps
from dgpo_kit.given import prompts_of
from dgpo_schemas.run import RunConfig
from tests.core.test_objective import GROUPS, MEMBERS, SIGMAS, make, make_batch

Make = Callable[..., RunConfig]
STEPS = FlowEuler(None).sigmas(10, Schedule(3.0))
CONTEXT = TimestepContext(sigmas=STEPS, t_min=0.3, t_max=0.95, shift=3.0, iteration=0, iterations=9)
QUIET: dict[str, Any] = {"prompts": {"heldout": None}, "evaluation": {"every": 0}}


def uniform(**options: Any) -> UniformTimesteps:
    return UniformTimesteps(WeightedOptions(**options))


def stratified(**options: Any) -> StratifiedTimesteps:
    return StratifiedTimesteps(StratifiedOptions(**options))


def of(policy: TimestepPolicy, *sigmas: float, context: TimestepContext = CONTEXT) -> list[float]:
    found = policy.weights(torch.tensor(sigmas, dtype=torch.float64), context)
    assert found is not None
    values: list[float] = found.tolist()
    return values


# -- formulas ---------------------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Callable[[float], float]] = {"sigma": lambda x: x, "one-minus-sigma": lambda x: 1 - x}


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("density", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_are_the_function_over_its_mean_under_the_density(name: str, density: float, power: float) -> None:
    policy = stratified(weights=name, weights_power=power, power=density)
    function = FUNCTIONS[name]
    total = integrate.quad(lambda x: x**density, 0.3, 0.95)[0]
    mean = integrate.quad(lambda x: x**density / total * function(x) ** power, 0.3, 0.95)[0]
    expected = [function(x) ** power / mean for x in (0.31, 0.6, 0.9)]
    assert of(policy, 0.31, 0.6, 0.9) == pytest.approx(expected, rel=1e-6)
    if density == 0:
        assert of(uniform(weights=name, weights_power=power), 0.31, 0.6, 0.9) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_weighted_uniform_times_are_times_of_that_density(power: float) -> None:
    """The mean of w(x) f(x) over uniform times is that of f over times drawn in proportion to w."""
    even, drawn = uniform(weights="sigma", weights_power=power), stratified(power=power)
    times, dense = even.typical(CONTEXT), drawn.typical(CONTEXT)
    found = even.weights(times, CONTEXT)
    assert found is not None
    assert float((found * torch.sin(7 * times)).mean()) == pytest.approx(float(torch.sin(7 * dense).mean()), abs=1e-6)


def test_the_noise_of_a_step_is_that_of_flow_grpo() -> None:
    """s sqrt(-dt) with s = a sqrt(sigma / (1 - sigma)), at sigma = 1 with the next sigma in the denominator."""
    times = [1.0, 0.75, 0.5, 0.2, 0.0]
    noise = [
        math.sqrt(1 / (1 - 0.75)) * math.sqrt(0.25), math.sqrt(0.75 / 0.25) * math.sqrt(0.25),
        math.sqrt(0.5 / 0.5) * math.sqrt(0.3), math.sqrt(0.2 / 0.8) * math.sqrt(0.2),
    ]  # fmt: skip
    steps = torch.tensor(times, dtype=torch.float64)
    asked = torch.tensor([1.0, 0.9, 0.75, 0.7499, 0.5, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    expected = [noise[k] for k in (0, 0, 1, 1, 2, 2, 3, 3, 3)]
    assert step_noise(asked, steps).tolist() == pytest.approx(expected, rel=1e-14)
    assert step_noise(asked[:1], torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist() == [1.0]
    context = replace(CONTEXT, sigmas=steps, t_min=0.2, t_max=1.0)
    own = SamplerSteps(WeightedOptions(weights="step-noise"))
    assert of(own, 1.0, 0.5, context=context) == pytest.approx([noise[0] / np.mean(noise), noise[2] / np.mean(noise)])
    even = uniform(weights="step-noise", weights_power=2.0)
    mean = np.average(np.square(noise[:3]), weights=[0.25, 0.25, 0.3])
    assert of(even, 0.6, context=context) == pytest.approx([noise[1] ** 2 / mean], rel=1e-4)


def test_the_first_step_is_finite_where_the_schedule_begins_just_below_one() -> None:
    context = replace(CONTEXT, sigmas=FlowDPMSolverPP(None).sigmas(10, Schedule(3.0)), t_min=0.0, t_max=1.0)
    high, low = of(SamplerSteps(WeightedOptions(weights="step-noise")), *context.sigmas[:2].tolist(), context=context)
    assert high == pytest.approx(low, rel=0.3)


def test_the_length_of_a_step_is_that_of_the_schedule() -> None:
    """Objectives on paths see the times of random steps only, and then 0."""
    window = torch.tensor([*STEPS[2:5].tolist(), 0.0], dtype=torch.float64)
    context = replace(CONTEXT, sigmas=window, all_sigmas=STEPS, t_min=0.0, t_max=1.0)
    times = window[:3].tolist()
    expected = step_noise(window[:3], STEPS)
    found = of(SamplerSteps(WeightedOptions(weights="step-noise")), *times, context=context)
    assert found == pytest.approx((expected / expected.mean()).tolist())


def test_the_run_hands_over_the_whole_schedule(make_config: Make, registry: Registry) -> None:
    config = make_config(
        rollout={"sampler": {"use": "flow-sde", "options": {"random_to": 0.7}}, "steps": 5},
        objective={"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.0},
        timesteps={"use": "sampler-steps", "count": 2, "t_min": 0.1},
    )
    context = Trainer(config, registry).build().timestep_context(0)
    every = FlowEuler(None).sigmas(5, Schedule(1.0)).tolist()
    assert context.all_sigmas is not None
    assert context.all_sigmas.tolist() == every
    assert context.sigmas.tolist() == [*(sigma for sigma in every if sigma >= 0.7), 0.0]
    assert len(context.sigmas) == 3


def test_without_weights_there_are_none() -> None:
    every = (UniformTimesteps(None), uniform(), stratified(power=2.0), SamplerSteps(None))
    assert all(policy.weights(STEPS[:3], CONTEXT) is None for policy in every)


def test_weights_that_are_all_zero_are_refused() -> None:
    policy = SamplerSteps(WeightedOptions(weights="one-minus-sigma"))
    with pytest.raises(UserError, match=r"timesteps.options.weights: one-minus-sigma is 0 at all times .* lower"):
        policy.check(replace(CONTEXT, t_min=0.999, t_max=1.0), 1)
    policy.check(replace(CONTEXT, t_min=0.3, t_max=1.0), 1)


def test_a_power_of_no_weights_is_refused() -> None:
    with pytest.raises(ValidationError, match="`weights_power` has no effect because `weights` is none"):
        WeightedOptions(weights_power=2.0)


@pytest.mark.parametrize("weights", ["sigma", "one-minus-sigma", "step-noise"])
@pytest.mark.parametrize("kind", [UniformTimesteps, StratifiedTimesteps, SamplerSteps])
def test_contract(kind: type[WeightedTimes], weights: str) -> None:
    options = StratifiedOptions if kind is StratifiedTimesteps else WeightedOptions
    check_timesteps(lambda: kind(options(weights=weights)))


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_each_weight_multiplies_its_times_loss_and_not_the_statistic() -> None:
    """The loss by hand: mean over times and groups of w_t mean_i (sigmoid(S_g) c_i dsm_i + kl |v - v_base|^2)."""
    o, batch = make({"clip": None, "kl": 0.5}, micro_batch=7), make_batch(AbsAdvantage)
    key, factors = Draws(7), [3.0, 0.25]
    section, model = o.config.objective, o.policy.backbone

    def velocity(which: Any, x: Tensor, sigma: float, g: int) -> Tensor:
        with torch.no_grad(), o.policy.activate(which):
            row = model.encode(prompts_of([batch.prompts[g].text]))
            return model.velocity(x[None], torch.tensor([sigma], dtype=torch.float64), row)[0]

    total = 0.0
    for t, sigma in enumerate(SIGMAS):
        for g in range(GROUPS):
            noise = normal_rows([key.at("noise", t).at(g)], tuple(batch.x0[0].shape), "cpu")[0].double()
            dsm, reference, kl = np.zeros((3, MEMBERS))
            for i in range(MEMBERS):
                x0 = batch.x0[g * MEMBERS + i]
                v, base = (velocity(which, (1 - sigma) * x0 + sigma * noise, sigma, g) for which in ("policy", "base"))
                dsm[i], reference[i], kl[i] = (
                    float((a - b).square().mean()) for a, b in ((v, noise - x0), (base, noise - x0), (v, base))
                )
            c = batch.signed_weights[g].numpy()
            gate = 1 / (1 + math.exp(-section.beta / MEMBERS * float(c @ (dsm - reference))))
            total += factors[t] * float(np.mean(gate * c * dsm + section.kl * kl)) / (GROUPS * len(SIGMAS))
    plain, weighted = (
        o.accumulation.add(o.prepare(batch, range(GROUPS), SIGMAS, key, some)) for some in (None, factors)
    )
    assert float(weighted.loss) == pytest.approx(total, rel=1e-6), "summed in float32"
    assert float(plain.loss) != pytest.approx(total, rel=1e-2)
    for name, values in plain.metrics.items():
        assert torch.equal(torch.cat(list(values)), torch.cat(list(weighted.metrics[name]))), name


def test_the_extremes_are_logged(make_config: Make, registry: Registry) -> None:
    for weights, low, high in (("none", None, None), ("sigma", 0.3 / 0.65, 1 / 0.65)):
        options = {"weights": weights}
        config = make_config(run={"name": weights, "iterations": 1}, timesteps={"options": options}, **QUIET)
        Trainer(config, registry).train()
        (record,) = [json.loads(line) for line in (run_path(config) / "metrics.jsonl").read_text().splitlines()]
        if low is None or high is None:
            assert record["timesteps"].keys() == {"t_min", "t_max"}
        else:
            assert record["timesteps"]["weight_min"] == pytest.approx(record["t_min"] / 0.65)
            assert record["timesteps"]["weight_max"] == pytest.approx(record["t_max"] / 0.65)
            assert low <= record["timesteps"]["weight_min"] <= record["timesteps"]["weight_max"] <= high


class Answers(UniformTimesteps):
    """Returns given weights."""

    answer: Any = None

    def weights(self, sigmas: Tensor, context: TimestepContext) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ([1.0, 1.0], "without gradient, got"),
        (torch.ones(3, dtype=torch.float64), r"a tensor \[2\]"),
        (torch.ones(2, dtype=torch.float64, requires_grad=True), "without gradient"),
        (torch.ones(2), "float64 on the CPU, got torch.float32"),
        (torch.tensor([1.0, math.nan], dtype=torch.float64), "finite numbers"),
        (torch.tensor([2.5, -0.5], dtype=torch.float64), "not negative"),
    ],
)
def test_weights_that_break_the_contract_are_reported(answer: Any, found: str) -> None:
    policy = Answers(None)
    policy.answer = answer
    with pytest.raises(PluginError, match=rf"test_time_weights:Answers: `weights` of 2 times must .*{found}"):
        draw_times(policy, 2, CONTEXT, Draws(1))


# -- measured errors --------------------------------------------------------------------------------------------------


class Known(Probe):
    """A model whose mean error is a given function of the time."""

    def __init__(self, error: Callable[[Tensor], Tensor]) -> None:
        self.error = error
        self.asked: list[list[float]] = []

    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        return torch.zeros(count, 1)

    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(sigmas.tolist())
        spread = torch.linspace(-0.5, 0.5, len(x0), dtype=torch.float64)
        return self.error(sigmas)[:, None] * (1 + spread), torch.full((len(sigmas), len(x0)), 7.0, dtype=torch.float64)


def measured(error: Callable[[Tensor], Tensor], **options: Any) -> tuple[InverseDsm, Known]:
    policy, probe = InverseDsm(InverseDsmOptions(**options)), Known(error)
    policy.measure(probe, CONTEXT)
    return policy, probe


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_inverse_of_the_interpolated_error_over_its_mean(power: float) -> None:
    policy, probe = measured(lambda s: 0.2 + (s - 0.5).square(), points=5, power=power)
    middles = np.array([0.365, 0.495, 0.625, 0.755, 0.885])
    assert probe.asked == [pytest.approx(middles.tolist())]

    def inverse(x: float) -> float:
        return float(np.interp(x, middles, 0.2 + (middles - 0.5) ** 2) ** -power)

    mean = integrate.quad(inverse, 0.3, 0.95, points=middles.tolist())[0] / 0.65
    asked = [0.3, 0.365, 0.4, 0.7, 0.885, 0.95]
    assert of(policy, *asked) == pytest.approx([inverse(x) / mean for x in asked], rel=1e-6)
    assert policy.metrics() == pytest.approx({"dsm_low": 0.2 + 0.005**2, "dsm_high": 0.2 + 0.385**2})


def test_a_model_that_errs_alike_everywhere_has_weights_of_one() -> None:
    for points in (1, 8):
        policy, _ = measured(lambda s: 0.3 + 0 * s, points=points)
        assert of(policy, 0.3, 0.5, 0.95) == pytest.approx([1.0] * 3, rel=1e-12)


def test_times_are_drawn_as_by_the_policy_it_names() -> None:
    key = Draws(3)
    for name, other in (("uniform", uniform()), ("stratified", stratified()), ("sampler-steps", SamplerSteps(None))):
        policy = InverseDsm(InverseDsmOptions.model_validate({"within": name}))
        assert torch.equal(policy.draw(4, CONTEXT, key), other.draw(4, CONTEXT, key))
    with pytest.raises(UserError, match="11 times cannot be drawn"):
        InverseDsm(InverseDsmOptions(within="sampler-steps")).check(CONTEXT, 11)
    own = STEPS[(STEPS >= 0.3) & (STEPS <= 0.95)]
    policy, _ = measured(lambda s: s, within="sampler-steps", points=400)
    inverse = own.clamp(0.3 + 0.65 / 800, 0.95 - 0.65 / 800).reciprocal()
    assert of(policy, *own.tolist()) == pytest.approx((inverse / inverse.mean()).tolist(), rel=1e-6)


def test_measurements_are_repeated_when_due_and_after_a_failure() -> None:
    policy, probe = measured(lambda s: s, every=3)
    before = of(policy, 0.4)
    probe.error = lambda s: math.nan * s
    for iteration, count in ((1, 1), (2, 1), (3, 2), (4, 3)):
        policy.measure(probe, replace(CONTEXT, iteration=iteration))
        assert len(probe.asked) == count
        assert of(policy, 0.4) == before, "what is no number is discarded"
    probe.error = lambda s: s.square()
    policy.measure(probe, replace(CONTEXT, iteration=5))
    assert len(probe.asked) == 4
    assert of(policy, 0.4) != before
    never, _ = measured(lambda s: 0 * s)
    assert never.weights(STEPS[:2], CONTEXT) is None
    assert never.metrics() == {}


@pytest.mark.parametrize("within", ["uniform", "stratified", "sampler-steps"])
def test_contract_of_measured_weights(within: Any) -> None:
    check_timesteps(lambda: InverseDsm(InverseDsmOptions(within=within, every=5, samples=3, power=2.0)))


def fingerprint(path: Path) -> dict[str, bytes]:
    newest = sorted((path / "checkpoints").iterdir())[-1]
    saved = [file for file in sorted(newest.iterdir()) if file.name != "clock.json"]
    return {file.name: file.read_bytes() for file in (path / "metrics.jsonl", *saved)}


def test_resume_is_bit_exact_and_weights_are_those_of_the_model(make_config: Make, registry: Registry) -> None:
    options = {"every": 2, "samples": 3, "points": 4}
    config = make_config(
        timesteps={"use": "inverse-dsm", "count": 3, "t_min": 0.2, "options": options},
        optimizer={"learning_rate": 0.05, "passes": 2}, **QUIET,
    )  # fmt: skip
    Trainer(config, registry).train()
    wanted = fingerprint(run_path(config))
    records = [json.loads(line)["timesteps"] for line in wanted["metrics.jsonl"].splitlines()]
    assert records[0]["dsm_high"] == records[1]["dsm_high"] != records[2]["dsm_high"] == records[3]["dsm_high"]
    assert all(0 < record["weight_min"] < record["weight_max"] for record in records)
    for stop_after in (1, 2, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert fingerprint(run_path(config)) == wanted
