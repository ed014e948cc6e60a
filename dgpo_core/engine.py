"""The parts of a run, built from its configuration: what training, evaluation, sampling and export share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dgpo_core.checkpoint import Checkpoint
from dgpo_core.contracts import AdvantageWeighting, Backbone, Objective, RewardModel, Sampler, TimestepPolicy
from dgpo_core.distributed import Runtime
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.policy import ConditioningCache, Policy
from dgpo_core.prompts import load_prompts, some_of
from dgpo_core.rollout import Roller
from dgpo_core.scoring import Reward, Scorer
from dgpo_core.types import Prompt

if TYPE_CHECKING:
    from dgpo_core.registry import Registry
    from dgpo_schemas.run import RewardBlock, RunConfig

__all__ = ["Engine"]


class Engine:
    """Builds each part when it is first used, so that sampling loads no rewards and `--dry-run` checks them all."""

    def __init__(self, config: RunConfig, registry: Registry, *, directory: Path | None = None) -> None:
        self.config = config
        self.registry = registry
        self.runtime = Runtime(config, directory)
        self.draws = Draws(config.run.seed)

    @cached_property
    def backbone(self) -> Backbone:
        """The model with its checkpoint loaded."""
        made: Backbone = self.registry.create("backbone", self.config.backbone, device=self.runtime.device)
        return made

    @cached_property
    def policy(self) -> Policy:
        """The four views of the model's weights."""
        return Policy(self.backbone, self.config.objective.ema)

    @cached_property
    def conditioning(self) -> ConditioningCache:
        """Prompt embeddings, encoded once."""
        return ConditioningCache(self.backbone)

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler of rollouts and evaluation."""
        made: Sampler = self.registry.create("sampler", self.config.rollout.sampler)
        return made

    @cached_property
    def weighting(self) -> AdvantageWeighting:
        """Advantages to weights."""
        made: AdvantageWeighting = self.registry.create("weighting", self.config.weighting)
        return made

    @cached_property
    def timesteps(self) -> TimestepPolicy:
        """Training times."""
        made: TimestepPolicy = self.registry.create("timesteps", self.config.timesteps)
        return made

    @cached_property
    def objective(self) -> Objective:
        """The loss."""
        made: Objective = self.registry.create("objective", self.config.objective)
        if made.needs_path and self.sampler.deterministic:
            raise UserError(
                f"objective: {self.config.objective.use} learns from the sampler's random path, but "
                f"rollout.sampler: {self.config.rollout.sampler.use} is deterministic"
            )
        return made

    @cached_property
    def train_prompts(self) -> list[Prompt]:
        """Prompts to train on."""
        return load_prompts(self.config.prompts.train, "train", self.registry)

    @cached_property
    def heldout_prompts(self) -> list[Prompt]:
        """Prompts for evaluation, cut to the configured number."""
        block = self.config.prompts.heldout
        if block is None:
            return []
        return some_of(load_prompts(block, "heldout", self.registry), self.config.evaluation.prompts)

    @cached_property
    def scorer(self) -> Scorer:
        """The rewards trained on."""
        return self.make_scorer(self.config.rewards, self.train_prompts)

    @cached_property
    def evaluation_scorer(self) -> Scorer:
        """The rewards evaluated with; those trained on unless others are named."""
        blocks = self.config.evaluation.rewards
        if blocks is None:
            blocks = self.config.rewards
        return self.make_scorer(blocks, self.heldout_prompts)

    def make_scorer(self, blocks: Sequence[RewardBlock], prompts: Sequence[Prompt]) -> Scorer:
        """Reward models for prompts, which each of them checks first. Same reward and options: one model."""
        rewards = []
        for block in blocks:
            model = self._reward(block)
            model.check_prompts(prompts)
            rewards.append(Reward(block.label, block.weight, model))
        return Scorer(rewards)

    def _reward(self, block: RewardBlock) -> RewardModel:
        for known, model in self._rewards:
            if known.use == block.use and known.options == block.options:
                return model
        made: RewardModel = self.registry.create("reward", block, device=self.runtime.device)
        self._rewards.append((block, made))
        return made

    @cached_property
    def _rewards(self) -> list[tuple[RewardBlock, RewardModel]]:
        return []

    def roller(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        resolution: tuple[int, int] | None = None,
        micro_batch: int | None = None,
    ) -> Roller:
        """Draws samples as configured, except for what is given."""
        rollout = self.config.rollout
        return Roller(
            self.policy,
            self.sampler,
            self.conditioning,
            resolution=resolution or rollout.height_width,
            steps=steps or rollout.steps,
            shift=rollout.shift,
            guidance=rollout.guidance if guidance is None else guidance,
            # Where nothing is set an iteration's samples are one batch, and evaluation draws no larger ones.
            micro_batch=micro_batch or rollout.micro_batch or rollout.groups * rollout.group_size,
            autocast=self.runtime.autocast,
        )

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint's weights in place. Raises UserError if it is of another architecture or adapter."""
        expected = self.policy.expected()
        found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
        if expected != found:
            differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            first = differing[0]
            raise UserError(
                f"{checkpoint.path}: made by another model or adapter: {len(differing)} weights differ, the first is "
                f"{first} (here {expected.get(first, 'absent')}, there {found.get(first, 'absent')})"
            )
        self.policy.load_state(checkpoint.weights)

    def close(self) -> None:
        """Stop workers and trackers."""
        for name in ("scorer", "evaluation_scorer"):
            if name in self.__dict__:
                self.__dict__[name].close()
        self.runtime.close()
