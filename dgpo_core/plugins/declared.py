"""What plugins declare: whether it is sound, and which distribution it comes from."""

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
"""Parts of a kind that one plugin may declare: a generator that never ends would be no list."""


@dataclass(frozen=True, slots=True)
class RegisteredComponent:
    """A declared component and where it came from. contract: the version of the contract that its plugin declares;
    noun: what messages call a part of its kind."""

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
    """A declared command and where it came from."""

    command: Command
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"command {self.command.name} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class RegisteredTransport:
    """A declared place where rewards run, and where it came from."""

    key: str
    target: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"place {self.key} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that was set aside, and why."""

    distribution: str
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution} (entry point {self.entry_point}): {self.reason}"


def contract_of(plugin: object) -> int | None:
    """The version of the contract that a plugin says it was made for. Raises PluginError if that is no number."""
    declared = getattr(plugin, contract_version.ATTRIBUTE, None)
    if declared is None or (isinstance(declared, int) and not isinstance(declared, bool)):
        return declared
    raise PluginError(
        f"{contract_version.ATTRIBUTE} = {clean(repr(declared), 100)}: it is the version of the contract as a number, "
        f"such as {contract_version.VERSION}"
    )


def check_declared(registered: RegisteredComponent) -> None:
    """Raise ContractError for a component whose plugin says that it was made for another version of the contract."""
    if registered.contract not in (None, contract_version.VERSION):
        raise ContractError(f"{registered}: {contract_version.why_not(registered.contract)}")


def declarations(implementations: Sequence[pluggy.HookImpl], hook: str, sort: type[Any]) -> Iterator[Any]:
    """What a plugin's implementations of a hook return: Components, Commands or Kinds with names of their own. Raises
    PluginError for anything else."""
    seen: set[str] = set()
    for implementation in implementations:
        try:
            returned: Any = implementation.function()
            found = list(itertools.islice(returned, MOST + 1))
        except BaseException as error:
            raise PluginError(f"{hook} failed with {reported(error)}") from error
        if len(found) > MOST:
            raise PluginError(f"{hook} declares more than {MOST} components")
        for one in found:
            if not isinstance(one, sort):
                raise PluginError(f"{hook} must return dgpo_core.hookspecs.{sort.__name__}, not {type(one).__name__}")
            _CHECKS[sort](hook, one)
            if one.name in seen:
                raise PluginError(f"{hook}: {one.name} is declared twice; give one of them another name")
            seen.add(one.name)
            yield one


def declared_transports(implementations: Sequence[pluggy.HookImpl]) -> Iterator[tuple[str, str]]:
    """Keys and dotted paths of the places that a plugin's implementations of `dgpo_reward_transports` return. Raises
    PluginError for anything else."""
    for implementation in implementations:
        try:
            returned: Any = implementation.function()
            found = dict(returned)
        except BaseException as error:
            raise PluginError(f"dgpo_reward_transports failed with {reported(error)}") from error
        for key, target in found.items():
            if not isinstance(key, str) or not NAME.match(key):
                raise PluginError(f"dgpo_reward_transports: {key!r} is no key of a reward's block, such as worker")
            if not _is_path(target):
                raise PluginError(f"dgpo_reward_transports: {key}: must be 'package.module:connect'")
            yield key, target


def _check_component(hook: str, component: Component) -> None:
    if not isinstance(component.name, str) or not NAME.match(component.name):
        raise PluginError(f"{hook}: {component.name!r} is no name: lower-case letters, digits, . _ - only")
    if not _is_path(component.implementation):
        raise PluginError(f"{hook}: {component.name}: implementation must be 'package.module:Class'")
    if isinstance(component.options, str) and not PATH.match(component.options):
        raise PluginError(f"{hook}: {component.name}: options must be a model or 'package.module:Model'")
    if not isinstance(component.summary, str) or not component.summary.strip():
        raise PluginError(f"{hook}: {component.name} has no summary; one line says what it is")
    if component.adapts is not None and component.adapts not in (("video", "image"), ("image", "video")):
        raise PluginError(
            f"{hook}: {component.name}: adapts must be ('video', 'image') or its reverse, not {component.adapts!r}"
        )


def _check_command(hook: str, command: Command) -> None:
    if not isinstance(command.name, str) or not WORDS.match(command.name):
        raise PluginError(f"{hook}: {command.name!r} is no name: one or two words of lower-case letters, digits and -")
    if command.target != "" and not _is_path(command.target):
        raise PluginError(f"{hook}: {command.name}: target must be 'package.module:function'")
    if not isinstance(command.summary, str) or not command.summary.strip() or "\n" in command.summary:
        raise PluginError(f"{hook}: {command.name} has no summary; one line says what it does")
    if not isinstance(command.order, int):
        raise PluginError(f"{hook}: {command.name}: order must be a whole number, not {command.order!r}")


def _check_kind(hook: str, kind: Kind) -> None:
    if not isinstance(kind.name, str) or not NAME.match(kind.name):
        raise PluginError(f"{hook}: {kind.name!r} is no name: lower-case letters, digits, . _ - only")
    if not isinstance(kind.hook, str) or not HOOK.match(kind.hook):
        raise PluginError(f"{hook}: {kind.name}: hook must be a name that begins with dgpo_, not {kind.hook!r}")
    if not isinstance(kind.noun, str):
        raise PluginError(f"{hook}: {kind.name}: noun must be a text, not {kind.noun!r}")
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
