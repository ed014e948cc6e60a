"""Import the class and the options model of a declared component, and construct it."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import BaseModel, ValidationError

from dgpo_core.contracts import version as contract_version
from dgpo_core.contracts.signatures import misfits
from dgpo_core.errors import ContractError, DgpoError, PluginError, UserError
from dgpo_core.hookspecs import Kind
from dgpo_core.plugins.blame import OURS
from dgpo_core.plugins.declared import RegisteredComponent, check_declared
from dgpo_core.plugins.isolation import ctrl_c, imported, no_exit, reported
from dgpo_schemas.base import Options, UseBlock
from dgpo_schemas.problems import dotted, explain

__all__ = [
    "NoOptions",
    "check_contract",
    "contracts_of",
    "create",
    "implementation",
    "options_model",
]

WITH_SECTION = ("backbone", "objective")
"""Kinds whose implementation receives its whole section of the run file in addition to its options."""


class NoOptions(Options):
    """Options model of components without options."""


def options_model(registered: RegisteredComponent) -> type[BaseModel]:
    """Implement `Registry.options_model`."""
    declared = registered.component.options
    if declared is None:
        return NoOptions
    if isinstance(declared, str):
        declared = imported(str(registered), declared)
    if not (inspect.isclass(declared) and issubclass(declared, BaseModel)):
        raise PluginError(f"{registered}: its options must be a pydantic model, not {declared!r}")
    return declared


def implementation(registered: RegisteredComponent, kind: Kind) -> Any:
    """Implement `Registry.implementation`."""
    check_declared(registered)
    path = registered.component.implementation
    cls = imported(str(registered), path)
    bases = contracts_of(kind)
    if not (inspect.isclass(cls) and issubclass(cls, bases)):
        raise PluginError(f"{registered}: {path} is not a subclass of {' or '.join(base.__name__ for base in bases)}")
    changes = tuple(contract_version.changes_in(kind.name, cls, bases[0]))
    if changes:  # before what is abstract: that is so because the contract has changed
        raise ContractError(f"{registered}: {contract_version.why_not(contract_version.made_for(changes), changes)}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        raise PluginError(f"{registered}: {path} does not implement {missing}")
    base = next(base for base in bases if issubclass(cls, base))
    if (misfit := next(misfits(cls, base), None)) is not None:
        raise PluginError(f"{registered}: {path}: {misfit}")
    return cls


def contracts_of(kind: Kind) -> tuple[type[Any], ...]:
    """Import the base classes of a kind; an implementation derives from one of them."""
    contracts = tuple(imported(f"kind {kind.name}", path) for path in kind.contracts)
    for path, contract in zip(kind.contracts, contracts, strict=True):
        if not inspect.isclass(contract):
            raise PluginError(f"kind {kind.name}: its contract {path} is not a class")
    return contracts


def check_contract(registered: RegisteredComponent, kind: Kind) -> None:
    """Implement `Registry.check_contract`."""
    check_declared(registered)
    ours = registered.component.implementation.partition(".")[0] in OURS
    if registered.contract is None and kind.name in contract_version.CHANGED and not ours:
        try:
            implementation(registered, kind)
        except ContractError:
            raise
        except PluginError:
            return


def create(
    registered: RegisteredComponent, kind: Kind, block: UseBlock, constructor: str | None = None, **keywords: Any
) -> Any:
    """Construct a component with the options of its section; arguments and errors as for `Registry.create`."""
    model = options_model(registered)
    owner = str(registered)
    try:
        options = model.model_validate(block.options)
    except ValidationError as error:
        problems = explain(model, block.options, error)
        lines = [f"{kind.name} {block.use}: {dotted(('options', *path))}: {message}" for path, message in problems]
        raise UserError("\n".join(lines)) from error
    except Exception as error:
        raise PluginError(f"{owner}: validating its options failed: {reported(error)}") from error
    cls = implementation(registered, kind)
    if kind.name == "backbone":
        _check_section(cls, block)
    with ctrl_c() as pressed, no_exit():
        try:
            make = cls if constructor is None else getattr(cls, constructor)
            made = make(block, options, **keywords) if kind.name in WITH_SECTION else make(options, **keywords)
        except DgpoError:
            raise
        except BaseException as error:  # some libraries call sys.exit instead of raising
            if pressed():
                raise
            raise UserError(f"{owner}: could not be built: {reported(error)}") from error
    if changes := tuple(contract_version.attributes_in(kind.name, made)):
        raise ContractError(f"{owner}: {contract_version.why_not(contract_version.made_for(changes), changes)}")
    return made


def _check_section(cls: Any, block: UseBlock) -> None:
    from dgpo_core.plugins.sections import check_section  # imports the run file's schema, which is slow
    from dgpo_schemas.sections.backbone import BackboneSection

    if isinstance(block, BackboneSection):
        check_section(cls, block)
