"""Groups that are the best and the worst of more candidates: what is drawn again, what is logged, and that nothing else
of a run differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from dgpo_core.draws import Draws
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.flow.candidates import ChosenDraws
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import load
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.engine import build_engine
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import ScoredGroups, TrainingBatch
from dgpo_kit.toy import BrightnessReward, sizes_plugin
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
DOUBLE = {"use": "toy", "checkpoint": "toy", "lora": {"rank": 4, "alpha": 4}, "options": {"double": True}}
QUIET: dict[str, Any] = {"prompts": {"heldout": None}, "evaluation": {"every": 0}}
SIZES: dict[str, Any] = {
    "prompts": {"train": {"use": "toy-sizes", "options": {"sizes": [[8, 8], [16, 8]]}}, "heldout": None}
}
PATHS: dict[str, Any] = {
    "timesteps": {"use": "sampler-steps", "count": 2, "t_min": 0.1},
    "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.02},
}
GROUPS, CANDIDATES, STEPS = 4, 7, 3


class Kept(Callback):
    """Keeps the groups of each iteration, and what was reported of its progress."""

    def __init__(self) -> None:
        self.groups: list[ScoredGroups] = []
        self.batches: list[TrainingBatch] = []
        self.progress: list[tuple[str, int, int]] = []

    def on_advantages(self, iteration: int, groups: ScoredGroups, batch: TrainingBatch) -> None:
        self.groups.append(groups)
        self.batches.append(batch)

    def on_progress(self, phase: str, done: int, total: int) -> None:
        self.progress.append((phase, done, total))


def trained(
    config: RunConfig, registry: Registry, iterations: int = 1
) -> tuple[Kept, list[dict[str, Any]], list[dict[str, Any]]]:
    """The groups of a new run, and its metrics and timings."""
    shutil.rmtree(run_path(config), ignore_errors=True)
    kept = Kept()
    Trainer(config, registry, callbacks=[kept]).train(max_iterations=iterations)
    files = (run_path(config) / f"{name}.jsonl" for name in ("metrics", "timings"))
    metrics, timings = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    return kept, metrics, timings


def newest(config: RunConfig) -> Path:
    return sorted((run_path(config) / "checkpoints").iterdir())[-1]


def sections(steps: int, members: int, **rollout: Any) -> dict[str, Any]:
    return {"rollout": {"steps": steps, "group_size": members, "groups": GROUPS, "micro_batch": 3, **rollout}}


def best_and_worst(rewards: list[float], best: int, worst: int) -> list[int]:
    order = sorted(range(len(rewards)), key=lambda i: (-rewards[i], i))
    return sorted(order[:best] + order[len(order) - worst :])


# -- what is drawn ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "changes"),
    [
        (None, QUIET),
        (1, QUIET | {"rewards": [{"use": "brightness"}, {"use": "win-rate"}]}),
        (3, QUIET | PATHS | {"sampler": "flow-sde"}),
        (2, QUIET | SIZES),
    ],
)
def test_members_are_the_extremes_of_the_candidates_drawn_again(
    best: int | None, changes: dict[str, Any], make_config: Make, registry: Registry
) -> None:
    """The candidates are the groups of a run that draws as many samples in as few steps, and the members those of a run
    that draws as many in all steps, both without choosing."""
    registry.register(sizes_plugin, distribution="sizes")
    changes = {**changes}
    sampler = {"sampler": changes.pop("sampler", "flow-euler")}
    changes["backbone"] = DOUBLE
    explored = sections(STEPS, 4, **sampler, explore={"candidates": CANDIDATES, "steps": 2, "best": best})
    found, (metrics,), _ = trained(make_config(**changes, **explored), registry)
    other = changes | {"timesteps": {"count": 2, "t_min": 0.1}, "objective": {}} | sections(2, CANDIDATES, **sampler)
    cheap, _, _ = trained(make_config(**other), registry)
    full, _, _ = trained(make_config(**changes, **sections(STEPS, CANDIDATES, **sampler)), registry)
    groups, ranked, every = found.groups[0], cheap.groups[0], full.groups[0]
    assert groups.candidates is not None
    torch.testing.assert_close(groups.candidates.rewards, ranked.rewards, rtol=0, atol=1e-6)
    several = len(groups.per_reward) > 1
    for g in range(GROUPS):
        chosen = best_and_worst(ranked.rewards[g].tolist(), best or 2, 4 - (best or 2))
        assert groups.candidates.chosen[g].tolist() == chosen != list(range(4))
        for member, candidate in enumerate(chosen):
            x0 = groups.x0[4 * g + member]
            torch.testing.assert_close(x0, every.x0[CANDIDATES * g + candidate], rtol=0, atol=1e-12)
            if not several:  # win rates are those among the members
                assert float(groups.rewards[g, member]) == pytest.approx(float(every.rewards[g, candidate]), abs=1e-6)
    for path in found.batches[0].paths:
        assert path.states.shape[0] == STEPS + 1, "the path of all steps"
    advantages = found.batches[0].advantages
    for g in range(GROUPS):
        rewards = groups.rewards[g]
        expected = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
        torch.testing.assert_close(advantages[g], expected.clamp(-5, 5), rtol=1e-9, atol=1e-9)
    assert metrics["reward"]["mean"] == pytest.approx(float(groups.rewards.mean()))


@pytest.mark.parametrize(
    ("steps", "changes"),
    [
        (1, {}),
        (STEPS, {"rewards": [{"use": "win-rate", "options": {"opponents": 2}}], "optimizer": {"updates": 2}}),
        (2, PATHS | {"sampler": "flow-sde"}),
    ],
)
def test_with_as_many_candidates_as_members_training_is_the_same_bit_for_bit(
    steps: int, changes: dict[str, Any], make_config: Make, registry: Registry
) -> None:
    changes = {**QUIET, **changes}
    sampler = {"sampler": changes.pop("sampler", "flow-euler")}
    plain = make_config(**changes, **sections(STEPS, 4, **sampler))
    _, wanted, _ = trained(plain, registry, 4)
    weights = {file.name: file.read_bytes() for file in newest(plain).glob("*.safetensors")}
    explored = make_config(**changes, **sections(STEPS, 4, **sampler, explore={"candidates": 4, "steps": steps}))
    _, metrics, _ = trained(explored, registry, 4)
    for line in metrics:
        assert set(line.pop("exploration")) == {"mean", "std", "missing", "rank_correlation"}
    assert metrics == wanted
    assert {file.name: file.read_bytes() for file in newest(explored).glob("*.safetensors")} == weights
    assert "exploration" not in wanted[0]


@pytest.mark.parametrize("micro_batch", [1, 5, 100])
def test_the_micro_batch_size_does_not_matter(micro_batch: int, make_config: Make, registry: Registry) -> None:
    explore = {"candidates": CANDIDATES, "steps": 2}
    one, found = (
        make_config(**QUIET, backbone=DOUBLE, **sections(STEPS, 4, micro_batch=size, explore=explore))
        for size in (3, micro_batch)
    )
    wanted, _, _ = trained(one, registry, 3)
    expected = load(newest(one)).weights
    kept, _, _ = trained(found, registry, 3)
    for mine, theirs in zip(kept.groups, wanted.groups, strict=True):
        assert mine.candidates is not None
        assert theirs.candidates is not None
        assert torch.equal(mine.candidates.chosen, theirs.candidates.chosen)
    for name, weight in load(newest(found)).weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-9)


def test_samples_that_are_chosen_lie_farther_apart(make_config: Make, registry: Registry) -> None:
    """The brightness of the toy's images hardly depends on the number of steps."""
    plain, _, _ = trained(make_config(**QUIET, **sections(STEPS, 4)), registry)
    explore = {"candidates": 16, "steps": 2}
    chosen, _, _ = trained(make_config(**QUIET, **sections(STEPS, 4, explore=explore)), registry)
    spreads = [kept.groups[0].rewards.std(1, correction=0).mean() for kept in (plain, chosen)]
    # Of 2 + 2 of 16 normal numbers 1.57 times the standard deviation, of 4 of them 0.80 times.
    assert spreads[1] > 1.5 * spreads[0]


# -- missing scores ---------------------------------------------------------------------------------------------------


class Fickle(BrightnessReward):
    """Brightness, but the darkest of each call are missing."""

    def score(self, media: Tensor, prompts: Any) -> Any:
        found = super().score(media, prompts)
        return type(found)(found.values, found.values <= found.values.sort().values[2], found.diagnostics)


def test_candidates_without_a_score_are_not_chosen(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo_kit.toy.BrightnessReward", Fickle)
    explore = {"candidates": CANDIDATES, "steps": 2}
    rollout = sections(STEPS, 4, micro_batch=CANDIDATES, explore=explore)
    kept, (metrics,), _ = trained(make_config(**QUIET, **rollout, scoring={"max_missing": 0.9}), registry)
    candidates = kept.groups[0].candidates
    assert candidates is not None
    assert metrics["exploration"]["missing"] == 3 * GROUPS
    assert candidates.scored.sum(1).tolist() == [4] * GROUPS
    assert candidates.scored.gather(1, candidates.chosen).all()
    assert candidates.summed.isnan().equal(~candidates.scored)


def test_too_many_candidates_without_a_score(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo_kit.toy.BrightnessReward", Fickle)
    rollout = sections(STEPS, 4, micro_batch=CANDIDATES, explore={"candidates": CANDIDATES, "steps": 2})
    with pytest.raises(RunStopped, match=r"^43% of the scores of the candidates of iteration 1 are missing \(limit"):
        trained(make_config(**QUIET, **rollout), registry)


# -- what is logged ---------------------------------------------------------------------------------------------------


def test_statistics_of_the_candidates(make_config: Make, registry: Registry) -> None:
    explore = {"candidates": CANDIDATES, "steps": 1}
    rewards = {"rewards": [{"use": "brightness", "weight": 2.0}]}
    kept, (metrics,), (timing,) = trained(make_config(**QUIET, **rewards, **sections(8, 4, explore=explore)), registry)
    groups = kept.groups[0]
    candidates = groups.candidates
    assert candidates is not None
    found = metrics["exploration"]
    assert found["mean"] == pytest.approx(float(candidates.rewards.mean()))
    assert found["std"] == pytest.approx(float(candidates.rewards.std(correction=0)))
    assert found["missing"] == 0
    cheap = candidates.rewards.gather(1, candidates.chosen)
    each = [stats.spearmanr(a, b).statistic for a, b in zip(cheap.tolist(), groups.rewards.tolist(), strict=True)]
    assert found["rank_correlation"] == pytest.approx(sum(each) / GROUPS)
    assert kept.progress[: kept.progress.index(("score", 0, 4 * GROUPS)) + 1] == [
        *(("rollout", min(done, CANDIDATES * GROUPS), CANDIDATES * GROUPS) for done in range(3, 31, 3)),
        ("score", 0, CANDIDATES * GROUPS),
        *(("rollout", min(done, 4 * GROUPS), 4 * GROUPS) for done in range(3, 19, 3)),
        ("score", 0, 4 * GROUPS),
    ]
    phase = timing["phases"]["rollout"]
    assert phase["samples_per_second"] * phase["seconds"] == pytest.approx((CANDIDATES + 4) * GROUPS)
    assert timing["rewards"]["brightness"] == pytest.approx(timing["phases"]["score"]["seconds"])


# -- stop and resume --------------------------------------------------------------------------------------------------


class StopsIn(Callback):
    """Asks to stop in the second iteration, among its candidates or the samples that are drawn again."""

    def __init__(self, stop: StopRequest, total: int) -> None:
        self.stop, self.total, self.iteration = stop, total, 0

    def on_iteration_start(self, iteration: int) -> None:
        self.iteration = iteration

    def on_progress(self, phase: str, done: int, total: int) -> None:
        if (phase, self.iteration, total) == ("rollout", 1, self.total) and done > total // 2:
            self.stop.request()


def result(config: RunConfig) -> Mapping[str, bytes]:
    files = [run_path(config) / "metrics.jsonl", *sorted(newest(config).glob("*.safetensors"))]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("members", [CANDIDATES, 4])
def test_a_run_that_is_stopped_among_its_samples_resumes_bit_for_bit(
    members: int, make_config: Make, registry: Registry
) -> None:
    explore = {"candidates": CANDIDATES, "steps": 2}
    config = make_config(**QUIET, **sections(STEPS, 4, explore=explore), checkpoints={"every": 10})
    Trainer(config, registry).train()
    wanted = result(config)
    shutil.rmtree(run_path(config))
    stop = StopRequest()
    trainer = Trainer(config, registry, callbacks=[StopsIn(stop, members * GROUPS)], stop=stop)
    assert trainer.train() == "interrupted"
    assert newest(config).name == "000001"
    assert Trainer(config, registry).train(resume=True) == "finished"
    assert result(config) == wanted


# -- the sampler ------------------------------------------------------------------------------------------------------


def test_samples_have_the_noise_of_any_keys(make_config: Make, registry: Registry) -> None:
    engine = build_engine(make_config(backbone=DOUBLE), registry)
    prompts, draws = engine.load_prompts("train")[:2], Draws(8)
    rows = torch.cat([r.x0 for r in engine.rollout_sampler().sample_groups(prompts, 5, draws, "policy")])
    chosen = ChosenDraws(draws, [[1, 4], [0, 2]])
    again = [r.x0 for r in engine.rollout_sampler(micro_batch=3).sample_groups(prompts, 2, chosen, "policy")]
    torch.testing.assert_close(torch.cat(again), rows[[1, 4, 5, 7]], rtol=0, atol=1e-12)


def test_few_steps_outside_of_the_guidance_interval(make_config: Make, registry: Registry) -> None:
    explore = {"candidates": CANDIDATES, "steps": 2}
    config = make_config(**sections(8, 4, guidance=2.0, guidance_interval=[0.3, 0.45], explore=explore))
    message = (
        r"^rollout\.guidance_interval: none of the sampler's 2 times \(1, 0\.001\) in 2 steps is in \[0\.3, 0\.45\]"
    )
    with pytest.raises(UserError, match=message):
        Trainer(config, registry).train()
