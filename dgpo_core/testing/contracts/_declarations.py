"""Declarations: light to import, and true to what they name."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Sequence

from pydantic import BaseModel, ValidationError

from dgpo_core import contracts
from dgpo_core.errors import PluginError, UserError
from dgpo_core.registry import CONTRACTS, Registry
from dgpo_core.testing.contracts._assertions import that
from dgpo_schemas.base import Options, UseBlock

__all__ = ["HEAVY", "check_declaration", "check_light"]

HEAVY = ("torch", "numpy", "scipy", "PIL", "diffusers", "transformers", "peft", "accelerate")
"""What must not be imported before a run uses a part."""


def check_light(module: str, heavy: Sequence[str] = HEAVY) -> None:
    """Importing the module of an entry point imports nothing heavy (a fresh interpreter is asked)."""
    code = f"import {module}, sys; print(*[name for name in {tuple(heavy)!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    that(done.returncode == 0, f"{module} can be imported: {done.stderr}")
    that(not done.stdout.strip(), f"importing {module} does not import {done.stdout.strip()}")


def check_declaration(registry: Registry, kind: str, name: str) -> None:
    """A part's summary, options and implementation are what `hookspecs.Part` says; unknown options are refused."""
    registered = registry.find(kind, name)
    part, model = registered.part, registry.options_model(registered)
    what = f"{kind} {name}"
    that("\n" not in part.summary, f"{what}: the summary is one line")
    that(issubclass(model, Options), f"{what}: the options are a dgpo_schemas.base.Options")
    for field, declared in model.model_fields.items():
        that(declared.description, f"{what}: option {field} has a description")
    json.dumps(model.model_json_schema())
    _check_refusals(registry, what, kind, name, model)
    path, _, attribute = part.implementation.partition(":")
    implementation = getattr(importlib.import_module(path), attribute)
    if kind in CONTRACTS:
        contract = getattr(contracts, CONTRACTS[kind])
        that(issubclass(implementation, contract), f"{what}: {part.implementation} is a {contract.__name__}")
    that(not inspect.isabstract(implementation), f"{what}: {part.implementation} implements all of its contract")


def _check_refusals(registry: Registry, what: str, kind: str, name: str, model: type[BaseModel]) -> None:
    unknown = "no_such_option"
    promise = f"{what}: an unknown option is a UserError that names it"
    that(model.model_config.get("extra") == "forbid", f"{promise}, but its model does not forbid it")
    try:
        registry.create(kind, UseBlock(use=name, options={unknown: 1}))
    except UserError as error:
        that(unknown in str(error) and not isinstance(error, PluginError), f"{promise}, not {error}")
    else:
        that(False, promise)
    try:
        made = model()
    except ValidationError:
        return  # something is required
    that(model.model_validate(made.model_dump(mode="json")) == made, f"{what}: written options can be read again")
