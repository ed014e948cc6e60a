"""Declarations: light to import, and true to what they name."""

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
"""What must not be imported before a run uses a component."""
REACHED = "imported:"
PATIENCE = 120.0
"""Seconds that an import may take."""
UNKNOWN = "no_such_option"


def check_light(module: str, heavy: Sequence[str] = HEAVY) -> None:
    """Importing the module of an entry point imports nothing heavy (a fresh interpreter is asked)."""
    names = f"*[name for name in {tuple(heavy)!r} if name in sys.modules]"
    code = f"import sys; out = sys.__stdout__; import {module}; print('\\n{REACHED}', {names}, file=out, flush=True)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        that(False, f"importing {module} ends within {PATIENCE:g} s")
    _, reached, found = done.stdout.rpartition(REACHED)  # what it prints itself comes before
    that(bool(reached) or done.returncode != 0, f"importing {module} does not end the process (status 0)")
    that(bool(reached), f"{module} can be imported: {done.stderr or f'exit status {done.returncode}'}")
    that(not found.strip(), f"importing {module} does not import {found.strip()}")


def distribution_checks(registry: Registry, distribution: str) -> Iterator[Check]:
    """What a distribution promises whatever its components are: its plugins load, its names are its own, and starting
    dgpo imports nothing heavy for them."""

    def loads() -> None:
        broken = [str(one) for one in registry.broken if one.distribution == distribution]
        that(not broken, f"its plugins can be loaded: {'; '.join(broken)}")

    def own_names() -> None:
        for (kind, name), owners in registry.conflicts().items():
            others = sorted(set(owners) - {distribution})
            that(distribution not in owners, f"{kind} {name} is its own; {', '.join(others)} declares it too")

    def light_import() -> None:
        modules = [point.value for owner, _, point in entry_points() if owner == distribution]
        if not modules:
            raise unittest.SkipTest("it is not installed with an entry point")
        for module in modules:
            check_light(module.partition(":")[0])

    def its_commands() -> None:
        for command in commands:
            found = imported(str(command), command.command.target)
            that(callable(found), f"{command}: {command.command.target} is a function or a Typer application")

    yield Check("loads", loads)
    yield Check("own-names", own_names)
    commands = [one for one in registry.commands().values() if one.distribution == distribution and one.command.target]
    if commands:
        yield Check("commands", its_commands)
    yield Check("light-import", light_import)


def check_declaration(registry: Registry, kind: str, name: str) -> None:
    """A component's summary, options and implementation are what `hookspecs.Component` says; unknown options are
    refused."""
    run_all(declaration_checks(registry, kind, name))


def declaration_checks(
    registry: Registry, kind: str, name: str, options: Mapping[str, Any] | None = None
) -> Iterator[Check]:
    """What a component's declaration promises. options: those that it is checked with."""

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
    """`dgpo plugins list` has one line for it."""
    that("\n" not in s.component.summary, f"{s.what}: the summary is one line")


def options_described(s: _Declared) -> None:
    """`dgpo plugins show` and editors explain every option."""
    that(issubclass(s.model, Options), f"{s.what}: the options are a dgpo_schemas.base.Options")
    for field, declared in s.model.model_fields.items():
        that(declared.description, f"{s.what}: option {field} has a description")
    json.dumps(s.model.model_json_schema())


def unknown_option(s: _Declared) -> None:
    """A misspelled option is the user's mistake, and named."""
    promise = f"{s.what}: an unknown option is a UserError that names it"
    that(s.model.model_config.get("extra") == "forbid", f"{promise}, but its model does not forbid it")
    try:
        s.registry.create(s.kind, UseBlock(use=s.component.name, options=s.options | {UNKNOWN: 1}))
    except UserError as error:
        that(UNKNOWN in str(error) and not isinstance(error, PluginError), f"{promise}, not {error}")
    else:
        that(False, promise)


def options_round_trip(s: _Declared) -> None:
    """A run directory keeps the options, and reads them again."""
    try:
        made = s.model.model_validate(s.options)
    except ValidationError as error:
        raise unittest.SkipTest("it has no options to write: some are required") from error
    again = s.model.model_validate(json.loads(json.dumps(made.model_dump(mode="json"))))
    that(again == made, f"{s.what}: written options can be read again")


def implementation(s: _Declared) -> None:
    """The class that is named exists, and implements all of its contract."""
    path, _, attribute = s.component.implementation.partition(":")
    found = getattr(importlib.import_module(path), attribute)
    bases = contracts_of(s.registry.kinds[s.kind])
    names = " or ".join(base.__name__ for base in bases)
    that(issubclass(found, bases), f"{s.what}: {s.component.implementation} is a {names}")
    that(not inspect.isabstract(found), f"{s.what}: {s.component.implementation} implements all of its contract")
