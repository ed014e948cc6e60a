"""Signal to noise of gradients: estimates against closed forms, groups against brute force, the gradient against the
formula in float64, and what the page says of a record."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dgpo_core.contracts import Sampler
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_core.storage.store import RunStore
from dgpo_core.training.loop import Loop
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.state import RunState
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import SampleResult, Schedule, ScoredGroups
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig
from experiments.catalog import HERE
from experiments.kept import Kept
from experiments.page import write_index
from experiments.signal.arms import ARMS, CHEAP, PLAIN, THRESHOLD, Arm, by_steps, config_of
from experiments.signal.groups import SharedNoise, chosen, first, scored_groups
from experiments.signal.measure import BASE_MODEL, TRAINED, Bench, cost_of, gradient_of, of_prompt
from experiments.signal.page import clear, write_page
from experiments.signal.record import load
from experiments.statistics.gradients import Moments, SignalNoise, ratio_of_means

PAGES = HERE.parent / "docs" / "experiments"


# -- estimates ----------------------------------------------------------------------------------------------------


def estimate(redraws: Tensor) -> SignalNoise:
    moments = Moments()
    for row in redraws:
        moments.add(row)
    return moments.estimate()


@pytest.mark.parametrize("count", [2, 3, 4])
def test_estimates_are_unbiased(count: int) -> None:
    """Over all equally likely outcomes of the redraws of a vector with four values."""
    values = torch.tensor([[1.0, 2.0, 0.0], [-1.0, 0.5, 3.0], [2.0, 2.0, -1.0], [0.0, 0.0, 0.25]], dtype=torch.float64)
    outcomes = [estimate(torch.stack(drawn)) for drawn in itertools.product(values, repeat=count)]
    mean = values.mean(0)
    assert np.mean([one.signal for one in outcomes]) == pytest.approx(float(mean.square().sum()), rel=1e-12)
    variance = float((values - mean).square().sum(1).mean())
    assert np.mean([one.noise for one in outcomes]) == pytest.approx(variance, rel=1e-12)


def test_estimates_are_those_of_pairs_and_of_the_definition() -> None:
    redraws = torch.randn(7, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
    found = estimate(redraws)
    pairs = [float(a @ b) for a, b in itertools.combinations(redraws, 2)]
    assert found.signal == pytest.approx(np.mean(pairs), rel=1e-12)
    noise = float(redraws.var(0).sum())
    assert found.noise == pytest.approx(noise, rel=1e-12)
    assert found.signal == pytest.approx(float(redraws.mean(0).square().sum()) - noise / 7, rel=1e-12)


def test_a_mean_of_independent_gaussian_gradients_has_as_many_times_the_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5])
    single = mean + scale * torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    closed = float(mean.square().sum() / scale.square().sum())
    assert estimate(single).ratio == pytest.approx(closed, rel=0.03)
    assert estimate(single.view(-1, 4, 3).mean(1)).ratio == pytest.approx(4 * closed, rel=0.03)


def test_redraws_of_zeros_have_no_ratio_and_one_redraw_no_variance() -> None:
    assert estimate(torch.zeros(3, 5)) == SignalNoise(0.0, 0.0)
    assert estimate(torch.zeros(3, 5)).ratio == 0
    with pytest.raises(AssertionError, match="two redraws"):
        estimate(torch.ones(1, 5))


def test_the_interval_of_a_ratio_is_that_of_paired_prompts() -> None:
    generator = np.random.default_rng(3)
    plain = generator.gamma(3.0, 0.1, 30)
    own = 1.3 * plain + generator.normal(0, 0.1, 30)

    def of_means(a: Any, b: Any, axis: int) -> Any:
        return a.mean(axis) / b.mean(axis)

    other = stats.bootstrap(
        (own, plain), of_means, paired=True, vectorized=True, method="percentile", n_resamples=10_000, rng=generator
    ).confidence_interval  # fmt: skip
    found = ratio_of_means(own, plain)
    assert found.value == pytest.approx(own.sum() / plain.sum())
    assert (found.low, found.high) == pytest.approx((other.low, other.high), rel=0.01)
    doubled = ratio_of_means(2 * plain, plain)
    assert (doubled.value, doubled.low, doubled.high) == pytest.approx((2, 2, 2), rel=1e-12), "no noise of prompts"


def test_a_ratio_to_what_may_be_nothing_has_no_interval() -> None:
    assert ratio_of_means([1.0, 1.0], [3.0, -1.0]).low is None
    assert ratio_of_means([1.0], [2.0]).high is None


def test_few_unbounded_resamples_are_beyond_either_end() -> None:
    """With a plain arm of 1 except 1 - d for one prompt, the ratio is n / (n - k d), k being its binomial number of
    picks: not bounded for k >= n / d."""
    picks = stats.binom(12, 1 / 12)
    assert 0 < picks.sf(4) < 0.025 < picks.sf(2)
    found = ratio_of_means([1.0] * 12, [1.0] * 11 + [1 - 2.9])  # not bounded for k >= 5
    most = int(picks.ppf(0.975))
    assert (found.value, found.low, found.high) == pytest.approx((12 / 9.1, 1.0, 12 / (12 - 2.9 * most)))
    assert ratio_of_means([1.0] * 12, [1.0] * 11 + [1 - 4.0]).high is None, "for k >= 3"


# -- groups -------------------------------------------------------------------------------------------------------


class Started(Sampler):
    """Returns the noise that it starts from."""

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def sample(self, velocity: Any, noise: Tensor, **others: Any) -> SampleResult:
        return SampleResult(noise)


def started(shared: float, groups: int, members: int) -> Tensor:
    """The initial noise [groups, members, 8, 8] with a common part."""
    keys = [Draws(5).at("rollout", g, m) for g in range(groups) for m in range(members)]
    noise = normal_rows([key.at("noise") for key in keys], (8, 8), "cpu")
    sampler = SharedNoise(Started(None), shared)
    found = sampler.sample(lambda x, sigma: x, noise, steps=1, schedule=None, draws=keys)  # type: ignore[arg-type]
    return found.x0.view(groups, members, 8, 8)


def test_members_share_a_part_of_their_noise() -> None:
    noise = started(0.5, 400, 2).double()
    mean = 1 / noise[:, 0].numel() ** 0.5  # the standard error of a mean of products
    assert float(noise.square().mean()) == pytest.approx(1, abs=4 * mean)
    assert float((noise[:, 0] * noise[:, 1]).mean()) == pytest.approx(0.5, abs=6 * mean)
    assert float((noise[1:, 0] * noise[:-1, 0]).mean()) == pytest.approx(0, abs=4 * mean)
    assert torch.equal(started(1.0, 3, 2)[:, 0], started(1.0, 3, 2)[:, 1])
    own = normal_rows([Draws(5).at("rollout", 0, m, "noise") for m in range(2)], (8, 8), "cpu")
    assert torch.equal(started(0.0, 1, 2)[0], own), "nothing shared is the sampler's own"


@pytest.fixture
def toy(known: Registry, tmp_path: Path) -> Iterator[TrainingRun]:
    """A toy run in float64, away from its base model."""
    trainer = Trainer(toy_config(tmp_path), known)
    run = trainer.build()
    with torch.no_grad():
        for number, parameter in enumerate(run.policy.parameters.values()):
            parameter.add_(0.3 * Draws(1).at(number).normal(tuple(parameter.shape)).to(parameter.dtype))
    yield run
    trainer.close()


def toy_config(directory: Path, **changes: Any) -> RunConfig:
    backbone, objective = {"options": {"double": True}}, {"beta": 30, "kl": 0.1, "clip": None}
    return RunConfig.model_validate(run_data(directory / "run", backbone=backbone, objective=objective, **changes))


def test_groups_are_those_of_a_training_iteration(toy: TrainingRun) -> None:
    expected = Loop(toy, RunState(toy.config), RunStore()).sample_groups_and_score()
    key = toy.draws.at("iteration", 0, "rollout")
    found = scored_groups(toy, toy.training_rollout_sampler, expected.prompts, 4, key)
    assert torch.equal(found.rewards, expected.rewards)
    assert all(torch.equal(a, b) for a, b in zip(found.x0, expected.x0, strict=True))


def drawn(run: TrainingRun, groups: int, members: int) -> ScoredGroups:
    prompts = run.train_prompts[:groups]
    return scored_groups(run, run.training_rollout_sampler, prompts, members, Draws(8))


def test_chosen_members_keep_their_sample_and_reward(toy: TrainingRun) -> None:
    groups = drawn(toy, 3, 6)
    members = torch.tensor([[0, 5], [2, 3], [1, 4]])
    found = chosen(groups, members)
    assert list(found.own) == list(range(6))
    for g, m in itertools.product(range(3), range(2)):
        member = int(members[g, m])
        assert found.rewards[g, m] == groups.rewards[g, member]
        assert torch.equal(found.x0[2 * g + m], groups.x0[6 * g + member])
    alone = drawn(toy, 3, 4)
    kept = chosen(groups, first(groups, 4))
    assert torch.equal(kept.rewards, alone.rewards), "the first candidates are the group that is drawn alone"


def test_the_gradient_is_that_of_the_formula(toy: TrainingRun) -> None:
    """loss = mean over times and members of sigmoid(S) c_i dsm_i + kl * mean (v - v_base)^2, S = (beta / G) sum of
    c_i (dsm_i - dsm_ref_i), computed here from the network alone."""
    batch = compute_advantages(drawn(toy, 2, 4), toy.config.advantages, toy.weighting)
    draws, group = Draws(21), 1
    found = gradient_of(toy, batch, group, toy.timesteps, 3, draws)
    key = draws.at("redraw", group)
    sigmas = toy.timesteps.draw(3, toy.timestep_context(0), key.at("timesteps")).tolist()
    x0, c = torch.stack(list(batch.x0[4:8])), batch.signed_weights[group]
    rows = toy.conditioning(toy.sized([batch.prompts[group]] * 4))
    loss, parameters = torch.zeros((), dtype=torch.float64), list(toy.policy.parameters.values())
    for t, sigma in enumerate(sigmas):
        noise = normal_rows([key.at("optimise", "noise", t, group)], tuple(x0.shape[1:]), "cpu").to(x0.dtype)
        x_sigma, times = (1 - sigma) * x0 + sigma * noise, torch.full((4,), sigma, dtype=x0.dtype)
        with toy.policy.activate("base"), torch.no_grad():
            base = toy.policy.velocity(x_sigma, times, rows)
        velocity = toy.policy.velocity(x_sigma, times, rows)
        dsm, of_base = ((v - (noise - x0)).square().mean((1, 2, 3)) for v in (velocity, base))
        gate = torch.sigmoid(30 / 4 * (c * (dsm.detach() - of_base)).sum())
        assert abs(float(gate) - 0.5) > 1e-3, "the gate acts"
        loss = loss + (gate * c * dsm + 0.1 * (velocity - base).square().mean((1, 2, 3))).mean() / 3
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert float(expected.norm()) > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in parameters)


TOY_ARMS = (
    Arm(PLAIN), Arm("all", {"rollout": {"group_size": 16}}), Arm("times", {"timesteps": {"count": 4}}),
    Arm("shared", shared=0.5), Arm("full", ranked_by=3), Arm("cheap", ranked_by=2),
)  # fmt: skip


def test_every_arm_is_measured_and_counted(toy: TrainingRun, tmp_path: Path) -> None:
    bench = Bench(toy, [(arm, toy_config(tmp_path, **arm.settings)) for arm in TOY_ARMS], 3)
    costs = {part.arm.name: cost_of(bench, part) for part in bench.parts}
    # 3 steps, 2 times of 3 + 1 passes, 4 members; 16 candidates.
    assert {name: cost.passes for name, cost in costs.items()} == {
        PLAIN: 11, "all": 11, "times": 19, "shared": 11, "full": 16 * 3 / 4 + 8, "cheap": 16 * 2 / 4 + 11,
    }  # fmt: skip
    assert [cost.members for cost in costs.values()] == [4, 16, 4, 4, 4, 4]
    found = of_prompt(bench, 0)
    assert found == of_prompt(bench, 0) != of_prompt(bench, 1)
    assert found.spread["full"] > found.spread["all"]
    assert found.correlation["3"] == pytest.approx(1), "as many steps as all"
    assert all(one.noise > 0 for one in found.gradients.values())
    assert len({one.signal for one in found.gradients.values()}) == len(TOY_ARMS)


def test_results_are_kept(tmp_path: Path) -> None:
    what: list[int] = []
    for _ in range(2):
        kept = Kept(tmp_path / "a" / "measured.jsonl")
        assert kept.has({"b": 1}) == bool(what)
        assert kept.once({"b": 1}, lambda: what.append(1) or {"found": 2.5}) == {"found": 2.5}
    assert what == [1]


# -- arms and the page --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_run_file(arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    config = config_of(arm, str(tmp_path), get_registry(), 30)
    assert config.run.iterations == 31
    assert config.rollout.group_size == (16 if arm.name == "G 16" else 8)
    assert config.rollout.steps == 8, "the page and the name of an arm say so"


def recorded(path: Path, best: float, noise: float = 0.0) -> None:
    """A made-up record: all arms are like the plain one, but 4 cheap steps have `best` times its signal."""
    scale = {by_steps(4): best, by_steps(8): 2.0, "noise half shared": 0.5}
    prompts = [
        {
            "gradients": {arm.name: {"signal": scale.get(arm.name, 1.0) * (0.2 + 0.01 * p + noise * (-1) ** p * (
                arm.name == by_steps(4))), "noise": 0.5} for arm in ARMS},
            "spread": {arm.name: 0.2 for arm in ARMS},
            "correlation": {str(steps): 0.1 * steps + 0.01 * p for steps in CHEAP},
        }
        for p in range(4)
    ]  # fmt: skip
    costs = {arm.name: {"members": 8, "passes": 30 if arm.name == by_steps(4) else 24} for arm in ARMS}
    data = {
        "quick": False, "facts": {"torch": "2", "cores": 2}, "redraws": 3, "parameters": 1000, "steps": 8,
        "costs": costs, "at": {BASE_MODEL: prompts, TRAINED: prompts},
    }  # fmt: skip
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("best", "noise", "says"),
    [
        (1.2, 0.0, "not above 1.25 (so is the whole interval): the engine gets no rollout plan."),
        (1.3, 0.0, "above 1.25 (so is the whole interval): the engine gets a rollout plan."),
        (1.3, 0.1, "above 1.25 (the interval contains 1.25, so the estimate decides): the engine gets a rollout plan."),
    ],
)
def test_a_page_decides_by_its_rule(best: float, noise: float, says: str, tmp_path: Path) -> None:
    recorded(tmp_path / "signal" / "record.json", best, noise)
    assert THRESHOLD == 1.25
    text = write_page(tmp_path).read_text()
    assert says in text
    assert f"`{by_steps(4)}` has {best:.2f} [" in text
    assert says in write_index(tmp_path).read_text()


def test_a_row_holds_what_its_prompts_give(tmp_path: Path) -> None:
    recorded(tmp_path / "signal" / "record.json", 1.2)
    record = load(tmp_path / "signal" / "record.json")
    row = record.rows[BASE_MODEL][by_steps(4)]
    assert (row.ratio.value, row.per_pass.value, row.of_sums) == pytest.approx((1.2, 1.2 * 24 / 30, 1.2))
    assert record.rows[BASE_MODEL][PLAIN].snr == pytest.approx(0.43)
    assert record.correlations[TRAINED][3] == pytest.approx(0.315)
    sentences = clear(list(record.rows[BASE_MODEL].values()))
    assert len(sentences) == 3
    assert sentences[0].startswith("`noise half shared` has less signal to noise than the plain group: 0.50 [0.50")
    unknown = replace(row, ratio=replace(row.ratio, low=None, high=None))
    assert clear([unknown]) == []


def test_the_page_is_of_its_record(tmp_path: Path) -> None:
    (tmp_path / "signal").mkdir()
    (tmp_path / "signal" / "record.json").write_bytes((PAGES / "signal" / "record.json").read_bytes())
    assert write_page(tmp_path).read_text() == (PAGES / "signal.md").read_text()
    record = load(PAGES / "signal" / "record.json")
    assert not record.quick
    # 8 steps and 4 times of 3 + 1 passes.
    assert {name: cost.passes for name, cost in record.measured.costs.items()} == {
        arm.name: {"8 times": 40.0, by_steps(8): 32.0, by_steps(4): 32.0, by_steps(3): 30.0, by_steps(2): 28.0}.get(
            arm.name, 24.0) for arm in ARMS
    }  # fmt: skip
