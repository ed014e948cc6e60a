"""Checks of a run's settings against its backbone, which `dgpo plan` makes too, with a meta model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo_core.config.components import conflicts
from dgpo_core.errors import UserError
from dgpo_schemas.problems import dotted

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone, Objective
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig

__all__ = ["check_adapter", "check_conflicts", "check_guidance", "check_merging", "check_sampling", "check_sharded"]

OPTIONAL = frozenset({"init", "rslora", "dora"})
"""Keys of `backbone.lora` that an adapter may not support."""


def check_adapter(backbone: Backbone) -> None:
    """Raise UserError unless the backbone has an adapter exactly if backbone.train is lora, and one that supports the
    settings."""
    train, use = backbone.section.train, backbone.section.use
    if train == "lora" and backbone.adapter is None:
        raise UserError(f"backbone.train: lora: the backbone {use} has no adapter; set `train: full` (all weights)")
    if train == "full" and backbone.adapter is not None:
        raise UserError(f"backbone.train: full: the backbone {use} always has an adapter; set `train: lora`")
    if backbone.adapter is not None:
        for key in sorted(OPTIONAL - backbone.adapter.supports):
            if getattr(backbone.section.lora, key):
                raise UserError(
                    f"backbone.lora.{key}: the adapter of the backbone {use} does not support it; remove it"
                )


def check_conflicts(config: RunConfig, registry: Registry) -> None:
    """Raise UserError for settings that components refuse, which reading a run file does too."""
    for path, message in conflicts(config, registry):
        raise UserError(f"{dotted(path)}: {message}")


def check_sharded(config: RunConfig) -> None:
    """Raise UserError for settings that are not possible with a model that is sharded over several ranks."""
    if config.backbone.compile:
        raise UserError("backbone.compile: a model sharded by run.shard cannot be compiled")
    if config.rollout.merge_adapter:
        raise UserError("rollout.merge_adapter: cannot merge an adapter into weights sharded by run.shard")


def check_merging(config: RunConfig, backbone: Backbone) -> None:
    """Raise UserError if rollouts are to merge an adapter that cannot be merged."""
    if config.rollout.merge_adapter and (backbone.adapter is None or backbone.adapter.merged() is None):
        raise UserError(f"rollout.merge_adapter: backbone: {config.backbone.use} cannot merge its adapter")


def check_guidance(backbone: Backbone, key: str, guidance: float) -> None:
    """Raise UserError for a guidance scale other than 1 if the model has no unconditional prediction."""
    if guidance != 1 and not backbone.supports_guidance:
        raise UserError(
            f"{key}: {guidance:g} is not possible: backbone: {backbone.section.use} has no unconditional prediction "
            "for classifier-free guidance; set it to 1"
        )


def check_sampling(config: RunConfig, backbone: Backbone, objective: Objective, *, sharded: bool) -> None:
    """Raise UserError if rollouts are approximate (`Backbone.sampling`) where they must not be."""
    if backbone.sampling() is None:
        return
    approximate = f"backbone: the options of {config.backbone.use} approximate its predictions in rollouts"
    if sharded:
        raise UserError(f"{approximate}, which is not possible with weights sharded by run.shard; remove the cache")
    if objective.needs_path:
        raise UserError(
            f"{approximate}, but objective: {config.objective.use} compares the probabilities of their steps with "
            "exact ones; remove the cache, or use another objective"
        )
