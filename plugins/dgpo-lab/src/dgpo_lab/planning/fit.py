"""Which settings to change so that a run fits a device: those that change what it costs, never what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.data.prompts import load_sources
from dgpo_core.errors import UserError
from dgpo_core.flow.sizes import largest
from dgpo_core.types import Prompt
from dgpo_lab.planning.plan import Plan
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["at_largest_size", "changed", "fitting", "nested"]

Planned = Callable[[RunConfig], Plan]
Accepts = Callable[[dict[str, Any]], bool]
"""Whether the run file with other values at dotted keys is a valid one."""
CHUNK = "backbone.options.decode_chunk"


def fitting(
    config: RunConfig, plan: Planned, room: float, accepts: Accepts = lambda changes: True
) -> tuple[dict[str, Any], Plan] | None:
    """The fewest changes, dotted keys to values, after which every phase's peak fits `room` bytes; None if none do.

    Smaller micro-batches first, which cost little time; then recomputed activations, about a third more work in
    training. Precision and everything else that changes the result is left to you. What the run file cannot say, such
    as an option that its backbone does not have, is not among them.
    """
    for changes in _moves(config, _chunk(config, accepts)):
        if accepts(changes):
            found = plan(changed(config, changes))
            if found.peak <= room:
                return changes, found
    return None


def _chunk(config: RunConfig, accepts: Accepts) -> int:
    """The backbone's option for the size of decoded chunks; 1, which cannot be less, if it has none."""
    chunk = config.backbone.options.get("decode_chunk")
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 2:
        return 1
    return chunk if accepts({CHUNK: chunk // 2}) else 1


def at_largest_size(config: RunConfig, registry: Registry) -> RunConfig:
    """The run with the largest size of its prompts for all of them, which is what needs the most memory; as it is where
    its prompts cannot be had now."""
    prompts: list[Prompt] = []
    splits: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")
    for split in splits:
        with suppress(UserError):
            prompts += [prompt for source in load_sources(config.prompts, split, registry) for prompt in source.prompts]
    size = largest(prompts, config.rollout.height_width)
    return config if size == config.rollout.height_width else changed(config, {"rollout.resolution": list(size)})


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with other values at dotted keys."""
    return RunConfig.model_validate(nested(changes, config.model_dump(mode="json", exclude_unset=True)))


def nested(changes: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Values at dotted keys put into the sections of a run file."""
    for key, value in changes.items():
        *path, last = key.split(".")
        section = data
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return data


def _moves(config: RunConfig, chunk: int) -> Iterator[dict[str, Any]]:
    total = config.rollout.groups * config.rollout.group_size
    drawn = config.rollout.micro_batch or total
    learned = config.optimizer.micro_batch or config.rollout.group_size
    for checkpointing in (False, True):
        if checkpointing and config.backbone.gradient_checkpointing:
            return
        step = 1
        while True:
            changes: dict[str, Any] = {"backbone.gradient_checkpointing": True} if checkpointing else {}
            for key, size in (
                ("rollout.micro_batch", drawn),
                ("optimizer.micro_batch", learned),
                (CHUNK, chunk),
            ):
                if step > 1 and size > 1:
                    changes[key] = max(1, size // step)
            yield changes
            if step >= max(drawn, learned, chunk):
                break
            step *= 2
