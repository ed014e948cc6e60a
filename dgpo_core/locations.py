"""Where a run's files are, whatever directory it is looked at from: its paths made absolute."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dgpo_core.config import PLACES, blocks_at
from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import KINDS
from dgpo_schemas.places import Place, absolute, places
from dgpo_schemas.run import RunConfig

if TYPE_CHECKING:
    from dgpo_core.registry import Registry
    from dgpo_schemas.problems import KeyPath

__all__ = ["located", "without_places"]


def located(config: RunConfig, registry: Registry | None = None) -> RunConfig:
    """The same with absolute paths, as they are from the working directory; those in plugins' options too, with a
    registry. Names of Hub repositories and of packages stay."""
    data = config.model_dump(mode="json")
    for path, place in list(_all_places(data, registry)):
        holder = _holder(data, path)
        holder[path[-1]] = absolute(holder[path[-1]], place)
    return RunConfig.model_validate(data)


def without_places(config: RunConfig, registry: Registry | None = None) -> dict[str, Any]:
    """Its settings without those that say where something is, which differ between machines."""
    data = config.model_dump(mode="json")
    for path, _ in list(_all_places(data, registry)):
        _holder(data, path)[path[-1]] = ""
    return data


def _all_places(data: dict[str, Any], registry: Registry | None) -> Iterator[tuple[KeyPath, Place]]:
    yield from places(RunConfig, data)
    if registry is not None:
        for place, kind in PLACES.items():
            for where, block in blocks_at(data, place):
                yield from _in_options(registry, kind, where, block)


def _in_options(registry: Registry, kind: str, where: KeyPath, block: Any) -> Iterator[tuple[KeyPath, Place]]:
    """Of a block's options, and of the parts that they choose in turn."""
    options = block.get("options") if isinstance(block, dict) else None
    if not options or not isinstance(block.get("use"), str):
        return
    try:
        model = registry.options_model(registry.find(kind, block["use"]))
    except PluginError:  # it may be installed only where the reward runs
        return
    for path, place in places(model, options):
        yield (*where, "options", *path), place
    for inner in KINDS:
        if inner in options:
            yield from _in_options(registry, inner, (*where, "options", inner), options[inner])


def _holder(data: Any, path: KeyPath) -> Any:
    for part in path[:-1]:
        data = data[part]
    return data
