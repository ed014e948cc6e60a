"""Measure the gradients of single groups at fixed weights, prompt by prompt.

Everything is the engine's own: rollouts, scores, advantages, weights, times, noise and the accumulation of the loss's
gradient. Redraw r of a prompt has keys of its own, which all arms share: candidates, times and noise are the same in
two arms wherever both have them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting, TimestepPolicy
from dgpo_core.draws import Draws
from dgpo_core.flow.candidates import extremes, rank_correlation
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.times import draw_times
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import ScoredGroups, TrainingBatch
from dgpo_schemas.run import RunConfig
from experiments.kept import Kept
from experiments.signal.arms import ARMS, CANDIDATES, CHEAP, Arm, config_of
from experiments.signal.groups import SharedNoise, chosen, first, scored_groups
from experiments.statistics.gradients import Moments, SignalNoise

__all__ = [
    "BASE_MODEL", "TRAINED", "Bench", "Cost", "Measured", "OfPrompt", "cost_of", "gradient_of", "measure", "of_prompt",
]  # fmt: skip

BASE_MODEL = "base model"
ITERATIONS = 30
TRAINED = f"policy after {ITERATIONS} iterations"


@dataclass(frozen=True, slots=True)
class Cost:
    """members: samples that a group trains on; passes: of the network for each of these, a forward and backward pass
    counting as three forward passes."""

    members: int
    passes: float


@dataclass(frozen=True, slots=True)
class OfPrompt:
    """Results for a prompt. gradients, spread: by arm, spread being the standard deviation of the rewards in a group,
    averaged over redraws; correlation: by cheap steps, the rank correlation in a group of their rewards with those of
    all steps, averaged over redraws without groups of equal rewards (None if there are only such)."""

    gradients: Mapping[str, SignalNoise]
    spread: Mapping[str, float]
    correlation: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """parameters: trained ones; steps: of a rollout; costs: by arm; at: by weights, the results of every prompt."""

    redraws: int
    parameters: int
    steps: int
    costs: Mapping[str, Cost]
    at: Mapping[str, Sequence[OfPrompt]]


@dataclass(frozen=True)
class Parts:
    """An arm's configuration and components."""

    arm: Arm
    config: RunConfig
    timesteps: TimestepPolicy
    weighting: AdvantageWeighting


class Bench:
    """A run at fixed weights, the components of the arms, and the rollout samplers: `full` with all steps, `cheap` by
    steps, `shared` by the common part of the noise."""

    def __init__(self, run: TrainingRun, configs: Sequence[tuple[Arm, RunConfig]], redraws: int) -> None:
        def sampler(**changes: object) -> RolloutSampler:
            return run.rollout_sampler(training=True, micro_batch=redraws * CANDIDATES, **changes)  # type: ignore[arg-type]

        self.run, self.redraws = run, redraws
        self.parts = [
            Parts(arm, c, run.create("timesteps", c.timesteps), run.create("weighting", c.weighting))
            for arm, c in configs
        ]
        self.full = sampler()
        self.cheap = {steps: sampler(steps=steps) for steps in CHEAP}
        parts = {arm.shared for arm, _ in configs if arm.shared}
        self.shared = {part: sampler(sampler=SharedNoise(run.sampler, part)) for part in parts}
        self.order = run.draws.at("prompts of the gradients").permutation(len(run.train_prompts)).tolist()


def measure(
    output: Path, registry: Registry, *, prompts: int, trained: int, redraws: int, on_message: Callable[[str], None]
) -> Measured:
    """Measure everything that `output`/measured.jsonl does not have yet: so many prompts at the base model, and
    `trained` of them at the policy of a run."""
    kept = Kept(output / "measured.jsonl")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as closing:
        trainer = Trainer(config_of(ARMS[0], f"{directory}/fixed", registry), registry)
        closing.callback(trainer.close)
        run = trainer.build()
        bench = Bench(run, [(arm, config_of(arm, directory, registry)) for arm in ARMS], redraws)
        at: dict[str, list[OfPrompt]] = {}
        for weights, count in {BASE_MODEL: prompts, TRAINED: trained}.items():
            keys = [{"weights": weights, "prompt": number, "redraws": redraws} for number in range(count)]
            if weights == TRAINED and not all(map(kept.has, keys)):
                on_message(f"{ITERATIONS} iterations of training")
                run.policy.load_state(_trained(directory, registry), ITERATIONS)
            at[weights] = []
            for number, key in enumerate(keys):
                on_message(f"{weights}: prompt {number + 1} of {count}")
                found = kept.once(key, lambda number=number: asdict(of_prompt(bench, number)))  # type: ignore[misc]
                gradients = {name: SignalNoise(**of_arm) for name, of_arm in found["gradients"].items()}
                at[weights].append(OfPrompt(gradients, found["spread"], found["correlation"]))
        return Measured(
            redraws, sum(p.numel() for p in run.policy.parameters.values()), run.config.rollout.steps,
            {part.arm.name: cost_of(bench, part) for part in bench.parts}, at,
        )  # fmt: skip


def _trained(directory: str, registry: Registry) -> Mapping[str, Tensor]:
    """Train a plain run and return the weights of its models."""
    trainer = Trainer(config_of(ARMS[0], f"{directory}/trained", registry, ITERATIONS), registry)
    trainer.train(max_iterations=ITERATIONS)
    return trainer.build().policy.state()


def of_prompt(bench: Bench, number: int) -> OfPrompt:
    """Measure all arms at the current weights for one prompt: the number-th in a random order."""
    run, draws = bench.run, bench.run.draws.at("gradients", number)
    prompts = [run.train_prompts[bench.order[number]]] * bench.redraws
    candidates = scored_groups(run, bench.full, prompts, CANDIDATES, draws.at("rollout"))
    ranking = {
        steps: scored_groups(run, sampler, prompts, CANDIDATES, draws.at("rollout")).rewards
        for steps, sampler in bench.cheap.items()
    }
    correlation = {
        str(steps): _mean(rank_correlation(r, candidates.rewards, candidates.scored)) for steps, r in ranking.items()
    }
    ranking[run.config.rollout.steps] = candidates.rewards
    gradients, spread = {}, {}
    for part in bench.parts:
        if part.arm.shared:
            sampler, members = bench.shared[part.arm.shared], part.config.rollout.group_size
            groups = scored_groups(run, sampler, prompts, members, draws.at("rollout"))
        else:
            groups = chosen(candidates, _members(part, candidates, ranking))
        batch = compute_advantages(groups, part.config.advantages, part.weighting, run.objective)
        moments, count = Moments(), part.config.timesteps.count
        for group in range(bench.redraws):
            moments.add(gradient_of(run, batch, group, part.timesteps, count, draws))
        gradients[part.arm.name] = moments.estimate()
        spread[part.arm.name] = float(groups.rewards.std(1, correction=0).mean())
    return OfPrompt(gradients, spread, correlation)


def _members(part: Parts, candidates: ScoredGroups, ranking: Mapping[int, Tensor]) -> Tensor:
    """Return the candidates that an arm trains on. The sampler is deterministic: redrawn with all steps, a candidate is
    the one that `candidates` has."""
    count = part.config.rollout.group_size
    if part.arm.ranked_by is None:
        return first(candidates, count)
    return extremes(ranking[part.arm.ranked_by], candidates.scored, count // 2, count - count // 2)


def _mean(correlations: Tensor) -> float | None:
    known = correlations[~correlations.isnan()]
    return float(known.mean()) if len(known) else None


def gradient_of(
    run: TrainingRun, batch: TrainingBatch, group: int, timesteps: TimestepPolicy, count: int, draws: Draws
) -> Tensor:
    """Return the gradient [D] of one group's loss in all trained parameters, at `count` times of its own; 0 where a
    parameter has none. The noise is that of the group's number in the batch."""
    key = draws.at("redraw", group)
    sigmas, weights = draw_times(timesteps, count, run.timestep_context(0), key.at("timesteps"))
    factors = None if weights is None else weights.tolist()
    update = run.optimizer.prepare(batch, range(group, group + 1), sigmas.tolist(), key.at("optimise"), factors)
    run.optimizer.accumulation.add(update)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in run.policy.parameters.values()]
    found = torch.cat([gradient.detach().flatten() for gradient in gradients])
    run.policy.forget_gradient()
    return found


def cost_of(bench: Bench, part: Parts) -> Cost:
    """Count an arm's passes: of all candidates by cheap steps, of the trained members by all steps, and of the loss."""
    members, size = part.config.rollout.group_size, part.config.rollout.height_width
    full = len(bench.full.evaluated_times(size))
    rollout = members * full
    if part.arm.ranked_by == bench.run.config.rollout.steps:
        rollout = CANDIDATES * full
    elif part.arm.ranked_by is not None:
        rollout += CANDIDATES * len(bench.cheap[part.arm.ranked_by].evaluated_times(size))
    loss = part.config.timesteps.count * (3 + len(bench.run.optimizer.models.others()))
    return Cost(members, rollout / members + loss)
