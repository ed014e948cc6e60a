"""Which settings to change so that a run fits a device: those that change what it costs, never what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dgpo_core.planning.plan import Plan
from dgpo_schemas.run import RunConfig

__all__ = ["changed", "fitting"]

Planned = Callable[[RunConfig], Plan]


def fitting(config: RunConfig, plan: Planned, room: float) -> tuple[dict[str, Any], Plan] | None:
    """The fewest changes, dotted keys to values, after which every verb's peak fits `room` bytes; None if none do.

    Smaller micro-batches first, which cost little time; then recomputed activations, about a third more work in
    training. Precision and everything else that changes the result is left to you.
    """
    for changes in _moves(config):
        found = plan(changed(config, changes))
        if found.peak <= room:
            return changes, found
    return None


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with other values at dotted keys."""
    data = config.model_dump(mode="json", exclude_unset=True)
    for key, value in changes.items():
        *path, last = key.split(".")
        section = data
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return RunConfig.model_validate(data)


def _moves(config: RunConfig) -> Iterator[dict[str, Any]]:
    total = config.rollout.groups * config.rollout.group_size
    drawn = config.rollout.micro_batch or total
    learnt = config.optimiser.micro_batch or config.rollout.group_size
    chunk = int(config.backbone.options.get("decode_chunk", 8))
    for checkpointing in (False, True):
        if checkpointing and config.backbone.gradient_checkpointing:
            return
        step = 1
        while True:
            changes: dict[str, Any] = {"backbone.gradient_checkpointing": True} if checkpointing else {}
            for key, size in (
                ("rollout.micro_batch", drawn),
                ("optimiser.micro_batch", learnt),
                ("backbone.options.decode_chunk", chunk),
            ):
                if step > 1 and size > 1:
                    changes[key] = max(1, size // step)
            yield changes
            if step >= max(drawn, learnt, chunk):
                break
            step *= 2
