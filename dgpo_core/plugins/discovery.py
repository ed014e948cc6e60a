"""Finding plugins, and telling a sound one from a broken one before any of its parts is used."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from dgpo_core import hookspecs
from dgpo_core.contracts.version import ATTRIBUTE
from dgpo_core.errors import PluginError
from dgpo_core.hookspecs import ENTRY_POINT_GROUP, Command, Part
from dgpo_schemas.text import error_text

__all__ = ["check_command", "check_hooks", "check_part", "entry_points"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
WORDS = re.compile(r"[a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)?\Z")
PATH = re.compile(r"[^:\s]+:[^:\s]+\Z")
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


def check_hooks(plugin: object) -> None:
    """Raise PluginError for unknown hooks, and for functions that look like hooks but lack the marker: these would
    silently do nothing."""
    for name in dir(plugin):
        if not name.startswith("dgpo_") or name == ATTRIBUTE:
            continue
        marker = getattr(getattr(plugin, name), "dgpo_impl", None)
        if name not in HOOKS and not (marker and (marker.get("optionalhook") or marker.get("specname"))):
            from dgpo_schemas.problems import nearest

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


def check_command(hook: str, command: Any) -> None:
    """Raise PluginError unless a declaration is one."""
    if not isinstance(command, Command):
        raise PluginError(f"{hook} must return dgpo_core.hookspecs.Command, not {type(command).__name__}")
    if not isinstance(command.name, str) or not WORDS.match(command.name):
        raise PluginError(f"{hook}: {command.name!r} is no name: one or two words of lower-case letters, digits and -")
    if not isinstance(command.target, str) or not (PATH.match(command.target) or command.target == ""):
        raise PluginError(f"{hook}: {command.name}: target must be 'package.module:function'")
    if not isinstance(command.summary, str) or not command.summary.strip() or "\n" in command.summary:
        raise PluginError(f"{hook}: {command.name} has no summary; one line says what it does")
    if not isinstance(command.order, int):
        raise PluginError(f"{hook}: {command.name}: order must be a whole number, not {command.order!r}")
