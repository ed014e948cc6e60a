"""Validate the declarations of plugins, and record which distribution they come from."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

from dgpo_core.contracts import version as contract_version
from dgpo_core.errors import ContractError, PluginError
from dgpo_core.hookspecs import Command, Component, Kind
from dgpo_core.plugins.isolation import reported
from dgpo_schemas.text import clean

__all__ = [
    "BrokenPlugin",
    "RegisteredCommand",
    "RegisteredComponent",
    "RegisteredTransport",
    "check_declared",
    "contract_of",
    "declarations",
    "declared_transports",
]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
WORDS = re.compile(r"[a-z][a-z0-9-]*(?: [a-z][a-z0-9-]*)?\Z")
HOOK = re.compile(r"dgpo_[a-z0-9_]+\Z")
PATH = re.compile(r"[^:\s]+:[^:\s]+\Z")
MOST = 1000
"""Maximum number of declarations per hook and plugin, in case a hook returns an endless generator."""


@dataclass(frozen=True, slots=True)
class RegisteredComponent:
    """A declared component and its origin.

    contract: version of the plugin contract that the plugin declares; noun: noun for components of its kind.
    """

    component: Component
    kind: str
    distribution: str
    version: str
    contract: int | None
    noun: str

    def __str__(self) -> str:
        return f"{self.noun} {self.component.name} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class RegisteredCommand:
    """A declared command and its origin."""

    command: Command
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"command {self.command.name} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class RegisteredTransport:
    """A declared reward transport and its origin."""

    key: str
    target: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"transport {self.key} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that failed to load, and the reason."""

    distribution: str
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution} (entry point {self.entry_point}): {self.reason}"


def contract_of(plugin: object) -> int | None:
    """Return the contract version that a plugin declares. Raises PluginError if it is not an integer."""
    declared = getattr(plugin, contract_version.ATTRIBUTE, None)
    if declared is None or (isinstance(declared, int) and not isinstance(declared, bool)):
        return declared
    raise PluginError(
        f"{contract_version.ATTRIBUTE}: must be the contract version as an integer, such as "
        f"{contract_version.VERSION}, got {clean(repr(declared), 100)}"
    )


def check_declared(registered: RegisteredComponent) -> None:
    """Raise ContractError if the plugin of a component declares another contract version."""
    if registered.contract not in (None, contract_version.VERSION):
        raise ContractError(f"{registered}: {contract_version.why_not(registered.contract)}")


def declarations(implementations: Sequence[pluggy.HookImpl], hook: str, sort: type[Any]) -> Iterator[Any]:
    """Yield the validated Components, Commands or Kinds (`sort`) that a plugin's implementations of a hook return.

    Raises PluginError for invalid declarations and duplicate names.
    """
    seen: set[str] = set()
    for implementation in implementations:
        try:
            returned: Any = implementation.function()
            declared = list(itertools.islice(returned, MOST + 1))
        except BaseException as error:
            raise PluginError(f"{hook} failed with {reported(error)}") from error
        if len(declared) > MOST:
            raise PluginError(f"{hook} declares more than {MOST} components")
        for item in declared:
            if not isinstance(item, sort):
                raise PluginError(f"{hook} must return dgpo_core.hookspecs.{sort.__name__}, not {type(item).__name__}")
            _CHECKS[sort](hook, item)
            if item.name in seen:
                raise PluginError(f"{hook}: {item.name} is declared twice; rename one of them")
            seen.add(item.name)
            yield item


def declared_transports(implementations: Sequence[pluggy.HookImpl]) -> Iterator[tuple[str, str]]:
    """Yield the keys and dotted paths that a plugin's implementations of `dgpo_reward_transports` return.

    Raises PluginError for invalid declarations.
    """
    for implementation in implementations:
        try:
            returned: Any = implementation.function()
            declared = dict(returned)
        except BaseException as error:
            raise PluginError(f"dgpo_reward_transports failed with {reported(error)}") from error
        for key, target in declared.items():
            if not isinstance(key, str) or not NAME.match(key):
                raise PluginError(f"dgpo_reward_transports: {key!r} is not a key of a reward's section, such as worker")
            if not _is_path(target):
                raise PluginError(f"dgpo_reward_transports: {key}: must be 'package.module:connect'")
            yield key, target


def _check_component(hook: str, component: Component) -> None:
    if not isinstance(component.name, str) or not NAME.match(component.name):
        raise PluginError(f"{hook}: {component.name!r} is not a valid name: use lower-case letters, digits, . _ -")
    if not _is_path(component.implementation):
        raise PluginError(f"{hook}: {component.name}: implementation must be 'package.module:Class'")
    if isinstance(component.options, str) and not PATH.match(component.options):
        raise PluginError(f"{hook}: {component.name}: options must be a model or 'package.module:Model'")
    if not isinstance(component.summary, str) or not component.summary.strip():
        raise PluginError(f"{hook}: {component.name} has no summary; add a one-line description")
    if component.tiny != "" and not _is_path(component.tiny):
        raise PluginError(f"{hook}: {component.name}: tiny must be 'package.module:function'")
    if component.adapts is not None and component.adapts not in (("video", "image"), ("image", "video")):
        raise PluginError(
            f"{hook}: {component.name}: adapts must be ('video', 'image') or its reverse, not {component.adapts!r}"
        )


def _check_command(hook: str, command: Command) -> None:
    if not isinstance(command.name, str) or not WORDS.match(command.name):
        raise PluginError(
            f"{hook}: {command.name!r} is not a valid name: use one or two words of lower-case letters, digits and -"
        )
    if command.target != "" and not _is_path(command.target):
        raise PluginError(f"{hook}: {command.name}: target must be 'package.module:function'")
    if not isinstance(command.summary, str) or not command.summary.strip() or "\n" in command.summary:
        raise PluginError(f"{hook}: {command.name} has no summary; add a one-line description")
    if not isinstance(command.order, int):
        raise PluginError(f"{hook}: {command.name}: order must be an integer, not {command.order!r}")


def _check_kind(hook: str, kind: Kind) -> None:
    if not isinstance(kind.name, str) or not NAME.match(kind.name):
        raise PluginError(f"{hook}: {kind.name!r} is not a valid name: use lower-case letters, digits, . _ -")
    if not isinstance(kind.hook, str) or not HOOK.match(kind.hook):
        raise PluginError(f"{hook}: {kind.name}: hook must be a name that starts with dgpo_, not {kind.hook!r}")
    if not isinstance(kind.noun, str):
        raise PluginError(f"{hook}: {kind.name}: noun must be a string, not {kind.noun!r}")
    paths = isinstance(kind.contracts, tuple) and kind.contracts and all(map(_is_path, kind.contracts))
    if not paths or not all(path == "" or _is_path(path) for path in (kind.checks, kind.template)):
        raise PluginError(f"{hook}: {kind.name}: contracts, checks and template must be 'package.module:name'")


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(PATH.match(value))


_CHECKS: dict[type[Any], Callable[[str, Any], None]] = {
    Component: _check_component,
    Command: _check_command,
    Kind: _check_kind,
}
