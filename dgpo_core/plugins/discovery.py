"""Finding plugins, and telling a sound one from a broken one before any of its components is used."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

from dgpo_core import hookspecs
from dgpo_core.contracts import version as contract_version
from dgpo_core.errors import ContractError, PluginError
from dgpo_core.hookspecs import ENTRY_POINT_GROUP, Kind
from dgpo_core.plugins.installable import how_to_install
from dgpo_schemas.text import error_text

__all__ = ["check_hooks", "check_kind", "entry_points"]

HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("dgpo_"))


Found: TypeAlias = tuple[str, str, importlib.metadata.EntryPoint]
"""Distribution, version, entry point."""


def entry_points(damaged: list[tuple[str, str]] | None = None) -> list[Found]:
    """Every entry point of everything installed, in the same order everywhere. To `damaged` are appended distributions
    whose entry points cannot be read, with the reason."""
    try:
        found = list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
    except Exception:  # one damaged file hides all
        found = list(_one_by_one([] if damaged is None else damaged))
    return [(*_origin(e), e) for e in sorted(found, key=lambda e: e.value)]


def _origin(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """A distribution with damaged metadata has no name or no version."""
    name = version = None
    with contextlib.suppress(Exception):
        name, version = (getattr(entry_point.dist, attribute, None) for attribute in ("name", "version"))
    return name or entry_point.value.partition(".")[0], version or "unknown"


def _one_by_one(damaged: list[tuple[str, str]]) -> Iterator[importlib.metadata.EntryPoint]:
    seen = set()
    for distribution in importlib.metadata.distributions():
        name = getattr(distribution, "name", None) or "?"
        if name in seen:  # the first on the path is the one that is imported
            continue
        seen.add(name)
        try:
            yield from distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        except Exception as error:
            damaged.append((name, f"its entry_points.txt cannot be read: {error_text(error)}"))


def check_hooks(plugin: object, of_kinds: Collection[str]) -> None:
    """Raise PluginError for unknown hooks, and for functions that look like hooks but lack the marker, which would
    silently do nothing; ContractError for hooks of an older contract. of_kinds: the hooks that declare components."""
    hooks = {*HOOKS, *of_kinds}
    for name in dir(plugin):
        if not name.startswith("dgpo_") or name == contract_version.ATTRIBUTE:
            continue
        marker = getattr(getattr(plugin, name), "dgpo_impl", None)
        if name in contract_version.HOOKS and marker is not None:
            change = f"the hook {name} became {contract_version.HOOKS[name]}"
            raise ContractError(contract_version.why_not(contract_version.OLDER, [change]))
        if name not in hooks and not (marker and (marker.get("optionalhook") or marker.get("specname"))):
            raise PluginError(_no_hook(name, hooks))
        if marker is None:
            raise PluginError(f"{name} lacks the @hookimpl marker (from dgpo_core import hookimpl)")
        if marker.get("wrapper") or marker.get("hookwrapper"):
            raise PluginError(f"{name} is a wrapper; dgpo calls every plugin by itself, so there is nothing to wrap")


def _no_hook(name: str, hooks: Collection[str]) -> str:
    if how := how_to_install("hook", name):
        return f"{name} declares parts of a kind that another plugin brings; {how}"
    from dgpo_schemas.problems import nearest

    return f"there is no hook {name}{nearest(name, hooks)}"


def check_kind(kind: Kind, kinds: Mapping[str, Kind]) -> None:
    """Raise PluginError unless a plugin's kind and its hook are new."""
    if kind.name in {*kinds, "command", "hook", "kind", "place"} or kind.hook in {
        *HOOKS,
        *(one.hook for one in kinds.values()),
    }:
        raise PluginError(f"dgpo_kinds: there is a kind {kind.name}, or a hook {kind.hook}, already; choose others")
