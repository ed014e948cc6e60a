"""Find the entry points of plugins, and validate their hooks before any component is used."""

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
    """Return the entry points of all installed plugins in a deterministic order.

    Appends distributions whose entry points cannot be read to `damaged`, with the reason.
    """
    try:
        found = list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))
    except Exception:  # a single damaged file makes the whole call fail
        found = list(_one_by_one([] if damaged is None else damaged))
    return [(*_origin(e), e) for e in sorted(found, key=lambda e: e.value)]


def _origin(entry_point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Return the distribution and its version, with fallbacks for damaged metadata."""
    name = version = None
    with contextlib.suppress(Exception):
        name, version = (getattr(entry_point.dist, attribute, None) for attribute in ("name", "version"))
    return name or entry_point.value.partition(".")[0], version or "unknown"


def _one_by_one(damaged: list[tuple[str, str]]) -> Iterator[importlib.metadata.EntryPoint]:
    seen = set()
    for distribution in importlib.metadata.distributions():
        name = getattr(distribution, "name", None) or "?"
        if name in seen:  # Python imports the first one on the path
            continue
        seen.add(name)
        try:
            yield from distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        except Exception as error:
            damaged.append((name, f"its entry_points.txt cannot be read: {error_text(error)}"))


def check_hooks(plugin: object, of_kinds: Collection[str]) -> None:
    """Raise PluginError for unknown hooks, and for hook functions without the marker, which would never be called.

    of_kinds: the hooks that declare components. Raises ContractError for hooks of an older contract.
    """
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
            raise PluginError(f"{name} is a wrapper; dgpo calls each plugin separately and does not support wrappers")


def _no_hook(name: str, hooks: Collection[str]) -> str:
    if how := how_to_install("hook", name):
        return f"{name} declares components of a kind that another plugin defines; {how}"
    from dgpo_schemas.problems import nearest

    return f"unknown hook {name!r}{nearest(name, hooks)}"


def check_kind(kind: Kind, kinds: Mapping[str, Kind]) -> None:
    """Raise PluginError if the name or the hook of a plugin's kind is already in use."""
    if kind.name in {*kinds, "command", "hook", "kind", "transport"} or kind.hook in {
        *HOOKS,
        *(other.hook for other in kinds.values()),
    }:
        raise PluginError(f"dgpo_kinds: kind {kind.name} or hook {kind.hook} already exists; use other names")
