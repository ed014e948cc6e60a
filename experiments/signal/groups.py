"""Candidates with their rewards, and the members of a group that are chosen from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dgpo_core.contracts import Sampler, VelocityFn
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.training.memory import decoded_media
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.run import TrainingRun
from dgpo_core.types import Prompt, SampleResult, Schedule, ScoredGroups

__all__ = ["SharedNoise", "chosen", "first", "scored_groups"]


class SharedNoise(Sampler):
    """A sampler that starts from unit noise of which a part is common to the members of a group."""

    def __init__(self, sampler: Sampler, shared: float) -> None:
        """shared: the common part of the variance, which is the correlation of two members' noise."""
        super().__init__(None)
        self._sampler = sampler
        self._shared = shared

    def sigmas(self, steps: int, schedule: Schedule) -> Tensor:
        """Return the sampler's times."""
        return self._sampler.sigmas(steps, schedule)

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
        """Integrate from sqrt(shared) * the group's noise + sqrt(1 - shared) * the member's."""
        of_group = [Draws(key.seed, key.key[:-1]).at("shared noise") for key in draws]
        common = normal_rows(of_group, tuple(noise.shape[1:]), noise.device)
        mixed = math.sqrt(self._shared) * common + math.sqrt(1 - self._shared) * noise
        return self._sampler.sample(velocity, mixed, steps=steps, schedule=schedule, draws=draws, keep_path=keep_path)


def scored_groups(
    run: TrainingRun, sampler: RolloutSampler, prompts: Sequence[Prompt], members: int, draws: Draws
) -> ScoredGroups:
    """Draw and score a group of `members` samples of the policy per prompt, as a training iteration does."""
    prompts, rollouts = run.sized(prompts), []
    for sampled in sampler.sample_groups(prompts, members, draws, "policy"):
        media = decoded_media(run.backbone, sampled, training=True)
        run.scorer.submit(media, sampled.prompts, samples=sampled.samples)
        rollouts.append(sampled)
    section, epsilon = run.config.scoring, run.config.advantages.epsilon
    return run.scorer.groups(run.scorer.collect(), rollouts, prompts, section, epsilon)


def first(groups: ScoredGroups, count: int) -> Tensor:
    """Return the first `count` members of every group, int64 [g, count]."""
    return torch.arange(count).expand(len(groups.prompts), count)


def chosen(groups: ScoredGroups, members: Tensor) -> ScoredGroups:
    """Return groups of the given members, int64 [g, k], alone, from groups that are all on this rank."""
    size, kept = groups.rewards.shape[1], members.shape[1]
    flat = (torch.arange(len(members))[:, None] * size + members).flatten().tolist()
    rows = dict(zip(groups.own, groups.x0, strict=True))
    return replace(
        groups,
        x0=tuple(rows[i] for i in flat),
        own=range(len(members) * kept),
        distances=None,
        rewards=groups.rewards.gather(1, members),
        summed=groups.summed.gather(1, members),
        scored=groups.scored.gather(1, members),
        per_reward={label: values.gather(1, members) for label, values in groups.per_reward.items()},
        statistics={},
        subscores={},
    )
