"""The engine: a model and its samplers, as used by training, evaluation, sampling and export."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dgpo_core.contracts import AnyReward, Backbone, Objective, Sampler
from dgpo_core.data.checks import check_prompts
from dgpo_core.data.prompts import load_sources, some_of_each
from dgpo_core.data.sources import Source
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.sizes import check_sizes
from dgpo_core.flow.times import Times
from dgpo_core.plugins import contract_checks
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.storage.bases import base_record
from dgpo_core.storage.checkpoint import Checkpoint
from dgpo_core.system.hub import prepare_hub
from dgpo_core.training.batch_sizes import drawn_at_once
from dgpo_core.training.checks import (
    check_adapter,
    check_conflicts,
    check_guidance,
    check_merging,
    check_sampling,
    check_sharded,
)
from dgpo_core.training.compiling import CompileReport, prepare_compile
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.precision import Choice, choose, speed_up
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.stored_rows import open_stored_rows
from dgpo_core.types import Conditioning, Prompt

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.origin import BaseRecord
    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["Engine", "build_engine"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class Engine:
    """The components of a run file that every command needs; created by `build_engine`.

    process_state: restores process-wide state that plugins change; fast: the choice of each part of `precision`;
    conditioning: cache of prompt embeddings; sampler: for rollouts, and for evaluation unless evaluation.sampler is
    set; reward_models: the models created so far with their blocks, without name and weight; closing: resources that
    are closed with the engine; on_message: called when the micro-batch size is reduced; compile_report: with
    `backbone.compile`.
    """

    config: RunConfig
    registry: Registry
    runtime: Runtime
    draws: Draws
    process_state: ProcessState
    backbone: Backbone
    fast: Mapping[str, Choice]
    policy: Policy
    conditioning: ConditioningCache
    sampler: Sampler
    evaluation_sampler: Sampler
    times: Times
    reward_models: list[tuple[RewardBlock, AnyReward]]
    closing: ExitStack
    on_message: Callable[[str], None]
    compile_report: CompileReport | None

    def create(self, kind: str, block: Any) -> Any:
        """Create a component; changes to process-wide state are undone."""
        return _create(self.registry, self.process_state, kind, block)

    def read_base(self) -> BaseRecord | None:
        """Describe the files of the base weights; None if the backbone does not report their directory."""
        directory = self.backbone.base_directory()
        return None if directory is None else base_record(directory)

    # -- prompts ------------------------------------------------------------------------------------------------

    def load_sources(self, split: Literal["train", "heldout"]) -> list[Source]:
        """Load prompts by source: one unnamed source if the run file has a single list, an empty list if it has
        none."""
        with self.process_state.around(f"prompts.{split}"):
            return load_sources(self.config.prompts, split, self.registry)

    def load_prompts(self, split: Literal["train", "heldout"]) -> list[Prompt]:
        """Load prompts source by source; held-out prompts are limited to evaluation.prompts."""
        sources = self.load_sources(split)
        if split == "train":
            return [prompt for source in sources for prompt in source.prompts]
        return some_of_each(sources, self.config.evaluation.prompts) if sources else []

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check prompts with the backbone. Raises UserError with the first prompt that it does not support."""
        with self.process_state.around("backbone, when it checked the prompts,"):
            check_prompts(self.backbone, prompts)

    def sized(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Return prompts with their size (their own or the run's) and frames per second filled in.

        Raises UserError, with the location of the prompt, for a size that the backbone does not support.
        """
        size = self.config.rollout.height_width
        check_sizes(self.backbone, prompts, size)
        return [prompt.sized(size, self.backbone.fps) for prompt in prompts]

    # -- samples ------------------------------------------------------------------------------------------------

    def check_guidance(self, key: str, guidance: float) -> None:
        """Raise UserError for a guidance scale other than 1 if the model has no unconditional prediction."""
        check_guidance(self.backbone, key, guidance)

    def rollout_sampler(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        micro_batch: int | None = None,
        sampler: Sampler | None = None,
        guidance_interval: Sequence[float] | None = None,
        training: bool = False,
    ) -> RolloutSampler:
        """Create a rollout sampler as configured; arguments override the configuration.

        guidance_interval: that of the evaluation; training: for rollouts to train on.
        """
        rollout = self.config.rollout
        if guidance is None:
            self.check_guidance("rollout.guidance", rollout.guidance)
        self.times.check_sampler(
            "rollout.steps" if steps is None else "steps",
            sampler or self.sampler,
            steps or rollout.steps,
            rollout.height_width,
        )
        created = RolloutSampler(
            self.policy,
            sampler or self.sampler,
            self.conditioning,
            resolution=rollout.height_width,
            steps=steps or rollout.steps,
            shift=rollout.shift,
            guidance=rollout.guidance if guidance is None else guidance,
            micro_batch=micro_batch or drawn_at_once(self.config, self.runtime.device),
            autocast=self.runtime.autocast,
            merge_adapter=rollout.merge_adapter,
            guidance_interval=guidance_interval or rollout.guidance_interval,
            interval_key=f"{'evaluation' if guidance_interval else 'rollout'}.guidance_interval",
            training=training,
            on_message=self.on_message,
        )
        created.scales(rollout.height_width)  # fails now if the interval contains no step
        return created

    def check_sampling(self, objective: Objective) -> None:
        """Raise UserError if rollouts are approximate (`Backbone.sampling`) where they must not be."""
        check_sampling(self.config, self.backbone, objective, sharded=self.runtime.sharded)

    def evaluation_rollout_sampler(
        self, *, steps: int | None = None, guidance: float | None = None, micro_batch: int | None = None
    ) -> RolloutSampler:
        """Create a rollout sampler as configured for evaluation; arguments override the configuration."""
        section = self.config.evaluation
        if guidance is None and section.guidance is not None:
            self.check_guidance("evaluation.guidance", section.guidance)
        return self.rollout_sampler(
            steps=steps or section.steps,
            guidance=section.guidance if guidance is None else guidance,
            micro_batch=micro_batch,
            sampler=self.evaluation_sampler,
            guidance_interval=section.guidance_interval,
        )

    # -- weights ------------------------------------------------------------------------------------------------

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint's weights. Raises UserError if its architecture or adapter differs."""
        self.check_weights(checkpoint.path, checkpoint.weights)
        self.policy.load_state(checkpoint.weights, checkpoint.manifest.updates)

    def check_weights(self, path: Path, weights: Mapping[str, Tensor]) -> None:
        """Raise UserError unless the names and shapes of the weights of the checkpoint at `path` match the model."""
        expected = self.policy.expected()
        found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if expected != found:
            differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
            first = differing[0]
            raise UserError(
                f"{path}: made by another model or adapter: {len(differing)} weights differ, the first is "
                f"{first} (expected {expected.get(first, 'absent')}, found {found.get(first, 'absent')})"
            )

    def close(self) -> None:
        """Stop workers and trackers."""
        if self.compile_report is not None:
            self.compile_report.send(self.on_message, log.warning)
        self.closing.close()  # closes all resources even if one of them fails


def build_engine(
    config: RunConfig,
    registry: Registry,
    *,
    runtime: Runtime | None = None,
    join: bool | None = None,
    new: bool = False,
    on_message: Callable[[str], None] = lambda text: None,
) -> Engine:
    """Build the model of a run file, with its checkpoint loaded, and its samplers; no rewards and no prompts.

    runtime: the runtime of a training run, which the caller closes; by default a Runtime is created with `join` and
    closed with the engine. new: the adapter starts from `backbone.lora.init`, which is not read otherwise. Raises
    UserError for configuration errors; then all resources are closed.
    """
    with ExitStack() as closing:
        if runtime is None:
            runtime = Runtime(config, join=join)
            closing.callback(runtime.close)
        process_state = ProcessState()
        compile_report = prepare_compile() if config.backbone.compile else None
        backbone, fast = _backbone(config, registry, runtime, process_state, new=new)
        conditioning = ConditioningCache(backbone, stored=open_stored_rows(config, backbone, runtime.device))
        sampler = _create(registry, process_state, "sampler", config.rollout.sampler)
        other = config.evaluation.sampler
        return Engine(
            config=config,
            registry=registry,
            runtime=runtime,
            draws=Draws(config.run.seed),
            process_state=process_state,
            backbone=backbone,
            fast=fast,
            policy=_policy(config, runtime, backbone, conditioning),
            conditioning=conditioning,
            sampler=sampler,
            evaluation_sampler=sampler if other is None else _create(registry, process_state, "sampler", other),
            times=Times(config, backbone),
            reward_models=[],
            closing=closing.pop_all(),
            on_message=on_message,
            compile_report=compile_report,
        )


def _create(registry: Registry, process_state: ProcessState, kind: str, block: Any, **arguments: Any) -> Any:
    prepare_hub()
    with process_state.around(f"{kind} {block.use}, when it was made,"):
        return registry.create(kind, block, **arguments)


def _backbone(
    config: RunConfig, registry: Registry, runtime: Runtime, process_state: ProcessState, *, new: bool
) -> tuple[Backbone, Mapping[str, Choice]]:
    check_conflicts(config, registry)  # of a configuration that was not read from a file
    if runtime.sharded:
        check_sharded(config)
    device = torch.device("cpu") if runtime.sharded else runtime.device
    section = config.backbone
    implementation = registry.implementation(registry.find("backbone", section.use))
    choose(config, implementation.supports_fast, runtime.device.type)  # fails before the model is loaded
    if not new:
        section = section.model_copy(update={"lora": section.lora.model_copy(update={"init": None})})
    backbone: Backbone = _create(registry, process_state, "backbone", section, device=device)
    contract_checks.built(backbone)
    check_adapter(backbone)
    check_merging(config, backbone)
    with process_state.around(f"backbone {section.use}, when it was sped up,"):
        fast = speed_up(backbone, config, runtime.device.type)
    if runtime.sharded:
        from dgpo_core.distributed.sharding import shard

        shard(
            backbone, runtime.device, runtime.processes, within_machines=config.run.shard == "machine",
            bf16=config.precision.autocast == "bf16",
        )  # fmt: skip
    return backbone, fast


def _policy(config: RunConfig, runtime: Runtime, backbone: Backbone, conditioning: ConditioningCache) -> Policy:
    if not runtime.sharded:
        return Policy(backbone, config.objective, keep_start=config.starts_elsewhere)
    from dgpo_core.training.sharded_policy import ShardedPolicy

    @cache
    def blank() -> tuple[Tensor, Conditioning]:
        """A zero latent and the conditioning of an example prompt."""
        size = config.rollout.height_width
        shape = contract_checks.latent_shape(backbone, size)
        return torch.zeros(1, *shape, device=runtime.device), conditioning([backbone.example(size)])

    return ShardedPolicy(
        backbone, config.objective, runtime.processes, blank=blank, autocast=runtime.autocast,
        keep_start=config.starts_elsewhere,
    )  # fmt: skip
