"""Checks of declarations: cheap to import, and consistent with the implementation."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import unittest
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from dgpo_core.errors import PluginError, UserError
from dgpo_core.hookspecs import Component
from dgpo_core.plugins.building import contracts_of
from dgpo_core.plugins.discovery import entry_points
from dgpo_core.plugins.isolation import imported
from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts._assertions import that
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_schemas.base import Options, UseBlock

__all__ = ["HEAVY", "check_declaration", "check_light", "declaration_checks", "distribution_checks"]

HEAVY = ("torch", "numpy", "scipy", "PIL", "diffusers", "transformers", "peft", "accelerate")
"""Packages that must not be imported before a run uses a component."""
REACHED = "imported:"
TIMEOUT = 120.0
"""Timeout of an import in seconds."""
UNKNOWN = "no_such_option"


def check_light(module: str, heavy: Sequence[str] = HEAVY) -> None:
    """Check, in a new interpreter, that importing the module of an entry point imports none of the packages `heavy`."""
    names = f"*[name for name in {tuple(heavy)!r} if name in sys.modules]"
    code = f"import sys; out = sys.__stdout__; import {module}; print('\\n{REACHED}', {names}, file=out, flush=True)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        that(False, f"importing {module} must finish within {TIMEOUT:g} s")
    _, reached, found = done.stdout.rpartition(REACHED)  # output of the module itself comes before
    that(bool(reached) or done.returncode != 0, f"importing {module} must not end the process (exit code 0)")
    that(bool(reached), f"{module} must be importable: {done.stderr or f'exit code {done.returncode}'}")
    that(not found.strip(), f"importing {module} must not import {found.strip()}")


def distribution_checks(registry: Registry, distribution: str) -> Iterator[Check]:
    """Yield the checks of a distribution itself: its plugins load, its component names are unique, its commands can be
    imported, and its entry points import no heavy package."""

    def loads() -> None:
        broken = [str(plugin) for plugin in registry.broken if plugin.distribution == distribution]
        that(not broken, f"its plugins must load: {'; '.join(broken)}")

    def own_names() -> None:
        for (kind, name), owners in registry.conflicts().items():
            others = sorted(set(owners) - {distribution})
            that(distribution not in owners, f"{kind} {name} must be unique; {', '.join(others)} declares it too")

    def light_import() -> None:
        modules = [point.value for owner, _, point in entry_points() if owner == distribution]
        if not modules:
            raise unittest.SkipTest("it is not installed with an entry point")
        for module in modules:
            check_light(module.partition(":")[0])

    def its_commands() -> None:
        for command in commands:
            found = imported(str(command), command.command.target)
            that(callable(found), f"{command}: {command.command.target} must be a function or a Typer application")

    yield Check("loads", loads)
    yield Check("own-names", own_names)
    commands = [c for c in registry.commands().values() if c.distribution == distribution and c.command.target]
    if commands:
        yield Check("commands", its_commands)
    yield Check("light-import", light_import)


def check_declaration(registry: Registry, kind: str, name: str) -> None:
    """Check that a component's summary, options and implementation follow `hookspecs.Component`."""
    run_all(declaration_checks(registry, kind, name))


def declaration_checks(
    registry: Registry, kind: str, name: str, options: Mapping[str, Any] | None = None
) -> Iterator[Check]:
    """Yield the checks of a component's declaration. options: the options to build it with."""

    @cache
    def subject() -> _Declared:
        registered = registry.find(kind, name)
        return _Declared(registry, kind, registered.component, registry.options_model(registered), dict(options or {}))

    functions = (summary, options_described, unknown_option, options_round_trip, implementation)
    yield from (check for check in checks_of(subject, *functions) if check.name != "builds")


@dataclass(frozen=True)
class _Declared:
    registry: Registry
    kind: str
    component: Component
    model: type[BaseModel]
    options: dict[str, Any]

    @property
    def what(self) -> str:
        return f"{self.kind} {self.component.name}"


def summary(s: _Declared) -> None:
    """The summary is one line, as `dgpo plugins list` shows it."""
    that("\n" not in s.component.summary, f"{s.what}: the summary must be one line")


def options_described(s: _Declared) -> None:
    """Every option has a description, which `dgpo plugins show` and editors display."""
    that(issubclass(s.model, Options), f"{s.what}: the options must derive from dgpo_schemas.base.Options")
    for field, declared in s.model.model_fields.items():
        that(declared.description, f"{s.what}: option {field} must have a description")
    json.dumps(s.model.model_json_schema())


def unknown_option(s: _Declared) -> None:
    """An unknown option raises UserError with its name."""
    requirement = f"{s.what}: an unknown option must raise UserError with its name"
    that(s.model.model_config.get("extra") == "forbid", f"{requirement}, but the model allows extra fields")
    try:
        s.registry.create(s.kind, UseBlock(use=s.component.name, options=s.options | {UNKNOWN: 1}))
    except UserError as error:
        that(UNKNOWN in str(error) and not isinstance(error, PluginError), f"{requirement}, got {error}")
    else:
        that(False, requirement)


def options_round_trip(s: _Declared) -> None:
    """Options written to a run directory as JSON can be read again."""
    try:
        made = s.model.model_validate(s.options)
    except ValidationError as error:
        raise unittest.SkipTest("no options to write: some are required") from error
    again = s.model.model_validate(json.loads(json.dumps(made.model_dump(mode="json"))))
    that(again == made, f"{s.what}: options must be the same after writing and reading them")


def implementation(s: _Declared) -> None:
    """The declared class exists and implements all abstract methods of its contract."""
    path, _, attribute = s.component.implementation.partition(":")
    found = getattr(importlib.import_module(path), attribute)
    bases = contracts_of(s.registry.kinds[s.kind])
    names = " or ".join(base.__name__ for base in bases)
    that(issubclass(found, bases), f"{s.what}: {s.component.implementation} must derive from {names}")
    missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    that(not inspect.isabstract(found), f"{s.what}: {s.component.implementation} must implement {missing}")
