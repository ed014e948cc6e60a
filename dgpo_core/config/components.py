"""Find the components that a file selects, and their options."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from dgpo_core.errors import PluginError
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.base import Options
from dgpo_schemas.changes import ITEM, declared
from dgpo_schemas.problems import KeyPath, dotted, split_key
from dgpo_schemas.run import RunConfig
from dgpo_schemas.text import error_text

__all__ = ["PLACES", "SERVED", "blocks_at", "chosen", "conflicts", "lasting_options"]

PLACES: dict[KeyPath, str] = {
    ("backbone",): "backbone",
    ("prompts", "train"): "prompts",
    ("prompts", "heldout"): "prompts",
    ("rollout", "sampler"): "sampler",
    ("rewards",): "reward",
    ("weighting",): "weighting",
    ("objective",): "objective",
    ("timesteps",): "timesteps",
    ("evaluation", "sampler"): "sampler",
    ("evaluation", "rewards"): "reward",
    ("evaluation", "monitors", "rewards"): "reward",
    ("evaluation", "monitors", "wording"): "prompts",
}
"""Keys of a run file that select components, with their kinds."""

SERVED: dict[KeyPath, str] = {("reward",): "reward"}
"""The same for a reward file."""


def blocks_at(data: Mapping[str, Any], place: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Yield (path, value) of the block at a place, or of each block in the list at that place."""
    value: Any = data
    for key in place:
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, list):
        yield from (((*place, i), block) for i, block in enumerate(value))
    elif value is not None:
        yield place, value


def chosen(data: Mapping[str, Any], registry: Registry) -> Iterator[tuple[KeyPath, type[BaseModel], dict[str, Any]]]:
    """Yield path, model and values of the non-empty options of every component that a run file selects."""
    for place, kind in PLACES.items():
        for where, block in blocks_at(data, place):
            yield from _in_options(registry, kind, where, block)


def conflicts(config: RunConfig, registry: Registry) -> Iterator[tuple[KeyPath, str]]:
    """Yield path and message of each combination of options with other settings that cannot work
    (`Options.conflicts`)."""
    for where, model, values in chosen(config.model_dump(), registry):
        try:
            options = model.model_validate(values)
            found = list(options.conflicts(config, dotted(where))) if isinstance(options, Options) else []
        except ValidationError:  # reported where the component is made
            continue
        except Exception as error:
            yield where, f"the plugin's own check failed with {error_text(error)}"
        else:
            yield from ((split_key(key), message) for key, message in found)


def lasting_options(kind: str, use: str, options: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return the options of a component that its results depend on: without those that may change at any time, such as
    addresses and batch sizes, also of the components that the options select."""
    kept = copy.deepcopy(dict(options))
    for _, model, values in _in_options(registry, kind, (), {"use": use, "options": kept}):
        for key, effect in declared(model).items():
            if effect == "any time":
                _remove(values, split_key(key))
    return kept


def _remove(values: Any, key: KeyPath) -> None:
    """Remove a key, where it is; ITEM stands for every item of a list."""
    first, *rest = key
    for inner in values if first == ITEM and isinstance(values, list) else ():
        _remove(inner, tuple(rest))
    if isinstance(values, dict) and first in values:
        if rest:
            _remove(values[first], tuple(rest))
        else:
            del values[first]


def _in_options(
    registry: Registry, kind: str, where: KeyPath, block: Any
) -> Iterator[tuple[KeyPath, type[BaseModel], dict[str, Any]]]:
    """Yield the options of a block, and of the components that its options select in turn."""
    options = block.get("options") if isinstance(block, dict) else None
    if not options or not isinstance(block.get("use"), str):
        return
    try:
        model = registry.options_model(registry.find(kind, block["use"]))
    except PluginError:  # it may be installed only where the reward runs
        return
    yield (*where, "options"), model, options
    for inner in registry.kinds:
        if inner in options:
            yield from _in_options(registry, inner, (*where, "options", inner), options[inner])
