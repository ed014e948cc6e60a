"""Find settings that make a run fit a device. They change its memory and time, never its results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.data.prompts import load_sources
from dgpo_core.errors import UserError
from dgpo_core.flow.sizes import largest
from dgpo_core.training.batch_sizes import drawn_at_once, trained_at_once
from dgpo_core.types import Prompt
from dgpo_lab.planning.plan import Plan
from dgpo_lab.planning.shapes import CUDA
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["all_prompts", "at_largest_size", "changed", "fitting", "nested"]

Planned = Callable[[RunConfig], Plan]
Accepts = Callable[[dict[str, Any]], bool]
"""Whether the run file is valid with other values at dotted keys."""
CHUNK = "backbone.options.decode_chunk"


def fitting(
    config: RunConfig, plan: Planned, room: float, accepts: Accepts = lambda changes: True
) -> tuple[dict[str, Any], Plan] | None:
    """Return the smallest set of changes (dotted keys to values) with which every phase's peak fits `room` bytes.

    Tries smaller micro-batches first, which cost little time, then gradient checkpointing, which adds about a third of
    the training compute. Precision and other settings that change the results are never changed, and neither are
    options that the backbone does not have. Returns the changes and their plan, or None if nothing fits.
    """
    for changes in _candidates(config, _chunk(config, accepts)):
        if accepts(changes):
            candidate = plan(changed(config, changes))
            if candidate.peak <= room:
                return changes, candidate
    return None


def _chunk(config: RunConfig, accepts: Accepts) -> int:
    """Return the backbone's option `decode_chunk`; 1, the minimum, if it has no such option."""
    chunk = config.backbone.options.get("decode_chunk")
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 2:
        return 1
    return chunk if accepts({CHUNK: chunk // 2}) else 1


def at_largest_size(config: RunConfig, registry: Registry) -> RunConfig:
    """Return the run with the largest resolution of its prompts for all samples, which needs the most memory.

    Returns the run unchanged if its prompts cannot be loaded.
    """
    size = largest(all_prompts(config, registry), config.rollout.height_width)
    return config if size == config.rollout.height_width else changed(config, {"rollout.resolution": list(size)})


def all_prompts(config: RunConfig, registry: Registry) -> list[Prompt]:
    """Return the training and held-out prompts of a run, without those that cannot be loaded."""
    prompts: list[Prompt] = []
    splits: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")
    for split in splits:
        with suppress(UserError):
            prompts += [prompt for source in load_sources(config.prompts, split, registry) for prompt in source.prompts]
    return prompts


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """Return the run with other values at dotted keys."""
    return RunConfig.model_validate(nested(changes, config.model_dump(mode="json", exclude_unset=True)))


def nested(changes: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Set values at dotted keys in the nested sections of a run file."""
    for key, value in changes.items():
        *path, last = key.split(".")
        section = data
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    return data


def _candidates(config: RunConfig, chunk: int) -> Iterator[dict[str, Any]]:
    rollout_size, training_size = (
        drawn_at_once(config, CUDA),
        trained_at_once(config, CUDA, sharded=bool(config.run.shard)),
    )
    for checkpointing in (False, True):
        if checkpointing and config.backbone.gradient_checkpointing:
            return
        step = 1
        while True:
            changes: dict[str, Any] = {"backbone.gradient_checkpointing": True} if checkpointing else {}
            for key, size in (
                ("rollout.micro_batch", rollout_size),
                ("optimizer.micro_batch", training_size),
                (CHUNK, chunk),
            ):
                if step > 1 and size > 1:
                    changes[key] = max(1, size // step)
            yield changes
            if step >= max(rollout_size, training_size, chunk):
                break
            step *= 2
