"""Finding plugins, and telling a sound one from a broken one before any of its parts is used."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any

from dgpo_core import hookspecs
from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import ENTRY_POINT_GROUP, Part
from dgpo_schemas.problems import nearest

__all__ = ["check_hooks", "check_part", "entry_points"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
PATH = re.compile(r"[^:\s]+:[^:\s]+\Z")
HOOKS = frozenset(name for name in vars(hookspecs) if name.startswith("dgpo_"))


def entry_points() -> Iterator[tuple[str, str, importlib.metadata.EntryPoint]]:
    """(distribution, version, entry point) of everything installed, in the same order everywhere."""
    for entry_point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.value):
        # A distribution with damaged metadata has no name or no version.
        name, version = (getattr(entry_point.dist, attribute, None) for attribute in ("name", "version"))
        yield name or entry_point.value.partition(".")[0], version or "unknown", entry_point


def check_hooks(plugin: object) -> None:
    """Raise PluginError for unknown hooks, and for functions that look like hooks but lack the marker: these would
    silently do nothing."""
    for name in dir(plugin):
        if not name.startswith("dgpo_"):
            continue
        marker = getattr(getattr(plugin, name), "dgpo_impl", None)
        if name not in HOOKS and not (marker and (marker.get("optionalhook") or marker.get("specname"))):
            raise PluginError(f"there is no hook {name}{nearest(name, HOOKS)}")
        if marker is None:
            raise PluginError(f"{name} lacks the @hookimpl marker (from dgpo_core import hookimpl)")
        if marker.get("wrapper") or marker.get("hookwrapper"):
            raise PluginError(f"{name} is a wrapper; dgpo calls every plugin by itself, so there is nothing to wrap")


def check_part(hook: str, part: Any) -> None:
    """Raise PluginError unless a declaration is one."""
    if not isinstance(part, Part):
        raise PluginError(f"{hook} must return dgpo_core.hookspecs.Part, not {type(part).__name__}")
    if not isinstance(part.name, str) or not NAME.match(part.name):
        raise PluginError(f"{hook}: {part.name!r} is no name: lower-case letters, digits, . _ - only")
    if not isinstance(part.implementation, str) or not PATH.match(part.implementation):
        raise PluginError(f"{hook}: {part.name}: implementation must be 'package.module:Class'")
    if isinstance(part.options, str) and not PATH.match(part.options):
        raise PluginError(f"{hook}: {part.name}: options must be a model or 'package.module:Model'")
    if not isinstance(part.summary, str) or not part.summary.strip():
        raise PluginError(f"{hook}: {part.name} has no summary; one line says what it is")
