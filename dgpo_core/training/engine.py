"""The parts of a run, built from its configuration: what training, evaluation, sampling and export share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from dgpo_core.contracts import (
    AdvantageWeighting,
    AnyReward,
    Backbone,
    Objective,
    Sampler,
    TimestepContext,
    TimestepPolicy,
)
from dgpo_core.data.prompts import check_prompts, guided, load_sources, notes, overlap, some_of_each, unheard
from dgpo_core.data.sources import Source
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import has_distribution, random_times, step_at
from dgpo_core.flow.sizes import Size, bucket, check_sizes, different, named
from dgpo_core.flow.times import Times
from dgpo_core.media import clips
from dgpo_core.media.kinds import check_reward
from dgpo_core.plugins import promises
from dgpo_core.plugins.surroundings import Guard
from dgpo_core.rewards import place
from dgpo_core.storage.bases import base_record
from dgpo_core.storage.checkpoint import Checkpoint
from dgpo_core.system.hub import prepare_hub
from dgpo_core.training.policy import ConditioningCache, Policy, check_adapter
from dgpo_core.training.probe import PolicyProbe
from dgpo_core.training.rollout import Roller
from dgpo_core.training.scoring import Reward, Scorer
from dgpo_core.types import Conditioning, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_core.plugins.registry import Registry
    from dgpo_core.training.policy import View
    from dgpo_schemas.origin import BaseRecord
    from dgpo_schemas.run import RewardBlock, RunConfig

__all__ = ["Engine"]


class Engine:
    """Builds each part when it is first used, so that sampling loads no rewards and `--dry-run` checks them all."""

    def __init__(self, config: RunConfig, registry: Registry, *, directory: Path | None = None) -> None:
        self.config = config
        self.registry = registry
        self.runtime = Runtime(config, directory)
        self.draws = Draws(config.run.seed)
        self.guard = Guard()
        self._rewards: list[tuple[RewardBlock, AnyReward]] = []
        self._scorers: list[Scorer] = []

    def _create(self, kind: str, block: Any, **arguments: Any) -> Any:
        """A part, whose making leaves the process as it was."""
        prepare_hub()
        with self.guard.around(f"{kind} {block.use}, when it was made,"):
            return self.registry.create(kind, block, **arguments)

    @cached_property
    def backbone(self) -> Backbone:
        """The model with its checkpoint loaded."""
        runtime, block = self.runtime, self.config.backbone
        if not runtime.sharded:
            made: Backbone = self._create("backbone", block, device=runtime.device)
            promises.built(made)
            check_adapter(made)
            return made
        if block.compile:
            raise UserError("backbone.compile: a model that run.shard spreads over processes cannot be compiled")
        from dgpo_core.distributed.sharding import shard

        made = self._create("backbone", block, device=torch.device("cpu"))
        promises.built(made)
        check_adapter(made)
        shard(made, runtime.device, runtime.processes)
        return made

    @cached_property
    def base(self) -> BaseRecord | None:
        """What the base weights were read from; None if the backbone does not say."""
        directory = self.backbone.base_directory()
        return None if directory is None else base_record(directory)

    @cached_property
    def policy(self) -> Policy:
        """The four views of the model's weights."""
        ema = self.config.objective.ema
        if not self.runtime.sharded:
            return Policy(self.backbone, ema)
        from dgpo_core.distributed.sharding import ShardedPolicy

        return ShardedPolicy(
            self.backbone, ema, self.runtime.processes, blank=lambda: self._blank, autocast=self.runtime.autocast
        )

    @cached_property
    def _blank(self) -> tuple[Tensor, Conditioning]:
        """A latent and the conditioning of a prompt that the model can draw."""
        size = self.config.rollout.height_width
        shape = promises.latent_shape(self.backbone, size)
        return torch.zeros(1, *shape, device=self.runtime.device), self.conditioning([self.backbone.example(size)])

    @cached_property
    def conditioning(self) -> ConditioningCache:
        """Prompt embeddings, encoded once."""
        return ConditioningCache(self.backbone)

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler of rollouts, and of evaluation unless it has its own."""
        made: Sampler = self._create("sampler", self.config.rollout.sampler)
        return made

    @cached_property
    def evaluation_sampler(self) -> Sampler:
        """The sampler of evaluation."""
        block = self.config.evaluation.sampler
        return self.sampler if block is None else self._create("sampler", block)

    @cached_property
    def weighting(self) -> AdvantageWeighting:
        """Advantages to weights."""
        made: AdvantageWeighting = self._create("weighting", self.config.weighting)
        return made

    @cached_property
    def timesteps(self) -> TimestepPolicy:
        """Training times."""
        made: TimestepPolicy = self._create("timesteps", self.config.timesteps)
        return made

    @cached_property
    def objective(self) -> Objective:
        """The loss."""
        made: Objective = self._create("objective", self.config.objective)
        if made.needs_path and not has_distribution(self.sampler):
            what = "is deterministic" if self.sampler.deterministic else "does not say how its steps are distributed"
            raise UserError(
                f"objective: {self.config.objective.use} learns from the sampler's random path, but "
                f"rollout.sampler: {self.config.rollout.sampler.use} {what}; choose a random one, such as flow-sde"
            )
        made.check(self.config)
        return made

    @cached_property
    def times(self) -> Times:
        """The times of samples and of training, as the run file and the model say."""
        return Times(self.config, self.backbone)

    @property
    def training_sigmas(self) -> Tensor:
        """Times of the rollouts at which the loss may be taken, and the final 0: with a path, of its random steps."""
        sigmas = self.sampler.sigmas(self.config.rollout.steps, self.times.schedule)
        return random_times(self.sampler, sigmas) if self.objective.needs_path else sigmas

    def check_guidance(self, key: str, guidance: float) -> None:
        """Raise UserError for a guidance scale that a model without an unconditional prediction cannot have."""
        if guidance != 1 and not self.backbone.guidable:
            raise UserError(
                f"{key}: {guidance:g} is not possible: backbone: {self.config.backbone.use} has no unconditional "
                "prediction to guide away from; leave it at 1"
            )

    def check_timesteps(self, context: TimestepContext) -> None:
        """Raise UserError if the times cannot be drawn, or are no times of the path that the objective learns from."""
        section, policy = self.config.timesteps, self.timesteps
        policy.check(context, section.count)
        if not self.objective.needs_path:
            return
        if not section.shared_noise:
            raise UserError(
                "timesteps.shared_noise: a path's states are not noised, so there is no noise to share or not to share "
                f"with objective: {self.config.objective.use}; leave it out"
            )
        for sigma in policy.draw(section.count, context, self.draws.at("trial of timesteps")).tolist():
            step_at(sigma, context.sigmas.tolist())

    def notes(self) -> list[str]:
        """What may be meant, but often is not."""
        found = []
        if not (self.sampler.deterministic or self.objective.needs_path):
            found.append(
                f"rollout.sampler: {self.config.rollout.sampler.use} is random, but objective: "
                f"{self.config.objective.use} does not need it to be; the paper reports faster learning with a "
                "deterministic one (our own comparison, docs/experiments/e1.md, could not tell them apart)"
            )
        shared = overlap(self.train_prompts, self.heldout_prompts, self.config.evaluation.prompts)
        if shared is not None:
            found.append(shared)
        for prompts in (self.train_prompts, self.heldout_prompts):
            found += notes(prompts)
        every = [*self.train_prompts, *self.heldout_prompts]
        found += [] if (unread := unheard(every, self._guided)) is None else [unread]
        reason = clips.why_not() if self.backbone.media == "video" else None
        if reason is not None and self.heldout_prompts and self.config.evaluation.pictures:
            found.append(f"evaluation.pictures: videos are written as film strips only; {reason}")
        return found

    @property
    def _guided(self) -> bool:
        """Whether there is a place where guidance is not 1."""
        return self.backbone.guidable and guided(self.config)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Have the backbone check prompts. Raises UserError naming the first one that it cannot draw."""
        with self.guard.around("backbone, when it checked the prompts,"):
            check_prompts(self.backbone, prompts)

    @cached_property
    def train_prompts(self) -> list[Prompt]:
        """Prompts to train on, source by source."""
        return [prompt for source in self.sources for prompt in source.prompts]

    @cached_property
    def sources(self) -> list[Source]:
        """Prompts to train on by source; one without a name where the run has one list."""
        return self._load_sources("train")

    def _load_sources(self, split: Literal["train", "heldout"]) -> list[Source]:
        with self.guard.around(f"prompts.{split}"):
            return load_sources(self.config.prompts, split, self.registry)

    @cached_property
    def heldout_prompts(self) -> list[Prompt]:
        """Prompts for evaluation, cut to the configured number."""
        sources = self._load_sources("heldout")
        return some_of_each(sources, self.config.evaluation.prompts) if sources else []

    def sized(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts with the size that they are drawn in, their own or the run's, and their frames a second. Raises
        UserError, with the prompt's place, for one that the backbone cannot draw."""
        size = self.config.rollout.height_width
        check_sizes(self.backbone, prompts, size)
        return [prompt.sized(size, self.backbone.fps) for prompt in prompts]

    @cached_property
    def scorer(self) -> Scorer:
        """The rewards trained on."""
        return self._made(self._make_rewards("rewards", self.config.rewards, self.train_prompts, "train"))

    @cached_property
    def evaluation_scorer(self) -> Scorer:
        """The rewards evaluated with; those trained on unless others are named."""
        return self.make_evaluation_scorer(self.heldout_prompts)

    def make_evaluation_scorer(self, prompts: Sequence[Prompt], members: int | None = None) -> Scorer:
        """The rewards evaluated with, and the guards, for any prompts; members: samples of each, by default as
        configured. Raises UserError for a reward that compares samples where there is one of each prompt."""
        section = self.config.evaluation
        if section.rewards is None:
            targets = self._make_rewards("rewards", self.config.rewards, prompts, "heldout")
        else:
            targets = self._make_rewards("evaluation.rewards", section.rewards, prompts, "heldout")
        guards = self._make_rewards("evaluation.guards.rewards", section.guards.rewards, prompts, guard=True)
        rewards = [*targets, *guards]
        if (members or section.samples_per_prompt) < 2:
            for reward in rewards:
                if reward.compares:
                    way = (
                        "take it out of evaluation.guards.rewards"
                        if reward.guard
                        else "name others in evaluation.rewards"
                    )
                    raise UserError(
                        f"evaluation.samples_per_prompt: the reward {reward.label} compares the samples of a prompt "
                        f"with each other, and there is 1; set it to 2 or more, or {way}"
                    )
        return self._made(rewards)

    def _made(self, rewards: Sequence[Reward]) -> Scorer:
        scorer = Scorer(rewards, self.guard, self.config.scoring.in_flight)
        self._scorers.append(scorer)  # to be closed with the engine
        return scorer

    def _make_rewards(
        self,
        key: str,
        blocks: Sequence[RewardBlock],
        prompts: Sequence[Prompt],
        split: Literal["train", "heldout"] | None = None,
        *,
        guard: bool = False,
    ) -> list[Reward]:
        """Reward models for what the backbone makes and for prompts, of which each of them checks those that it is
        asked for first; `key` is the blocks' place in the run file, split: whose sources say what they ask for."""
        rewards = []
        prompts = self.sized(prompts)
        sources = [] if split is None else self.config.prompts.sources(split)
        for i, block in enumerate(blocks):
            model = self._reward(block, f"{key}.{i}")
            check_reward(model, block, f"{key}.{i}", self.config.backbone, self.registry)
            with self.guard.around(f"reward {block.label}, when it checked the prompts,"):
                asked = [one.source for one in sources if one.rewards is None or block.label in one.rewards]
                reward = Reward(block.label, block.weight, model, guard, None if not sources else frozenset(asked))
                check_prompts(model, [prompt for prompt in prompts if reward.asks(prompt)])
            rewards.append(reward)
        return rewards

    def _reward(self, block: RewardBlock, place_in_file: str) -> AnyReward:
        """Same reward, options and place: one model."""
        where = block.model_copy(update={"name": None, "weight": 1.0})  # a name and a weight make no other model
        for known, model in self._rewards:
            if known == where:
                return model
        with self.guard.around(f"reward {block.label}, when it was made,"):
            made = place(block, self.registry, device=self.runtime.device, where=place_in_file)
        self._rewards.append((where, made))
        return made

    def roller(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        resolution: Size | None = None,
        micro_batch: int | None = None,
        sampler: Sampler | None = None,
    ) -> Roller:
        """Draws samples as configured, except for what is given."""
        rollout = self.config.rollout
        if guidance is None:
            self.check_guidance("rollout.guidance", rollout.guidance)
        self.times.check_sampler(
            "rollout.steps" if steps is None else "steps",
            sampler or self.sampler,
            steps or rollout.steps,
            resolution or rollout.height_width,
        )
        return Roller(
            self.policy,
            sampler or self.sampler,
            self.conditioning,
            resolution=resolution or rollout.height_width,
            steps=steps or rollout.steps,
            shift=rollout.shift,
            guidance=rollout.guidance if guidance is None else guidance,
            # Where nothing is set an iteration's samples are one batch, and evaluation draws no larger ones.
            micro_batch=micro_batch or rollout.micro_batch or rollout.groups * rollout.group_size,
            autocast=self.runtime.autocast,
            merge_adapter=self._merge_adapter,
        )

    @property
    def _merge_adapter(self) -> bool:
        """Whether samples are drawn with the adapter merged into the weights. Raises UserError if that cannot be."""
        if not self.config.rollout.merge_adapter:
            return False
        if self.runtime.sharded:
            raise UserError("rollout.merge_adapter: nothing can be merged into weights that run.shard spreads")
        if self.backbone.adapter is None or self.backbone.adapter.merged() is None:
            raise UserError(f"rollout.merge_adapter: backbone: {self.config.backbone.use} cannot merge its adapter")
        return True

    def evaluation_roller(self, *, steps: int | None = None, guidance: float | None = None) -> Roller:
        """Draws samples as evaluation is configured, except for what is given."""
        section = self.config.evaluation
        if guidance is None and section.guidance is not None:
            self.check_guidance("evaluation.guidance", section.guidance)
        return self.roller(
            steps=steps or section.steps,
            guidance=section.guidance if guidance is None else guidance,
            sampler=self.evaluation_sampler,
        )

    @cached_property
    def _probe_prompts(self) -> list[Prompt]:
        """Training prompts in an order of their own, because files are often sorted by task. Those of the bucket that
        most of them are in: a probe's samples are one tensor."""
        order = self.draws.at("probe", "prompts").permutation(len(self.train_prompts)).tolist()
        prompts = self.sized([self.train_prompts[i] for i in order])
        buckets = [bucket(self.backbone, prompt) for prompt in prompts]
        usual = Counter(buckets).most_common(1)[0][0]
        return [prompt for prompt, found in zip(prompts, buckets, strict=True) if found == usual]

    def probe(self, roller: Roller, view: View) -> PolicyProbe:
        """For timestep policies that measure: rollouts as `roller` and `view` draw them, on training prompts."""
        return PolicyProbe(
            self.policy,
            roller,
            lambda refine: self.roller(steps=self.config.rollout.steps * refine),
            self._probe_prompts,
            view=view,
            draws=self.draws.at("probe"),
            autocast=self.runtime.autocast,
        )

    def facts(self) -> dict[str, Any]:
        """What a person wants to know before waiting: sizes, device, numbers of prompts."""
        count = self.runtime.processes.count
        sizes = different([*self.train_prompts, *self.heldout_prompts], self.config.rollout.height_width)
        return {
            "device": str(self.runtime.device) + (f", {count} processes" if count > 1 else ""),
            "trained parameters": sum(p.numel() for p in self.policy.parameters.values()),
            "all parameters": sum(p.numel() for p in self.backbone.module.parameters()),
            "latent": self.roller().shape,
            **({"sizes": named(sizes)} if len(sizes) > 1 else {}),
            "shift": self.times.shown,
            "train prompts": len(self.train_prompts),
            "held-out prompts": len(self.heldout_prompts),
        }

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint's weights in place. Raises UserError if it is of another architecture or adapter."""
        self.check_weights(checkpoint.path, checkpoint.weights)
        self.policy.load_state(checkpoint.weights, checkpoint.manifest.updates)

    def check_weights(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Raise UserError if the weights of the checkpoint at `path` are of another architecture or adapter."""
        expected = self.policy.expected()
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if expected != found:
            differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            first = differing[0]
            raise UserError(
                f"{path}: made by another model or adapter: {len(differing)} weights differ, the first is "
                f"{first} (here {expected.get(first, 'absent')}, there {found.get(first, 'absent')})"
            )

    def close(self) -> None:
        """Stop workers and trackers."""
        with ExitStack() as closing:  # one that fails keeps none of the others open
            closing.callback(self.runtime.close)
            for _, model in self._rewards:
                closing.callback(model.close)
            for scorer in self._scorers:
                closing.callback(scorer.close)
