"""Discovery of plugins and access to their parts, by name.

Entry points of the group `dgpo` name light modules of hook implementations. Each is loaded on its own: one that does
not import, misspells a hook or declares nonsense is set aside with its reason, and only asking for one of its parts
fails. Implementations are imported when a run uses them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pluggy
from pydantic import BaseModel, ValidationError

from dgpo_core import hookspecs
from dgpo_core.contracts import version as contract_version
from dgpo_core.contracts.signatures import misfits
from dgpo_core.errors import ContractError, DgpoError, PluginError, UserError
from dgpo_core.hookspecs import KINDS, Part
from dgpo_core.plugins.discovery import check_hooks, check_part, entry_points
from dgpo_core.plugins.isolation import ctrl_c, isolated, no_exit, told
from dgpo_schemas.base import Options, UseBlock
from dgpo_schemas.problems import dotted, explain, nearest
from dgpo_schemas.text import clean, error_text

__all__ = ["BUNDLED", "BrokenPlugin", "NoOptions", "RegisteredPart", "Registry", "get_registry"]

log = logging.getLogger(__name__)

CONTRACTS: dict[str, tuple[str, ...]] = {
    "backbone": ("Backbone",),
    "sampler": ("Sampler",),
    "reward": ("RewardModel", "GroupReward"),
    "weighting": ("AdvantageWeighting",),
    "timesteps": ("TimestepPolicy",),
    "objective": ("Objective",),
    "prompts": ("PromptSource",),
}
"""Kind to the classes in `contracts` of which an implementation derives from one."""
NOUNS = {"timesteps": "timestep policy", "prompts": "prompt source"}
"""What messages call a kind, where its key in a run file reads badly."""

WITH_SECTION = ("backbone", "objective")
"""Kinds whose implementation is given its whole section of the run file, not only its options."""

BUNDLED = {
    ("backbone", "sd3"): "dgpo-sd3",
    ("backbone", "sdxl"): "dgpo-diffusers",
    ("timesteps", "scheduled-t-min"): "dgpo-adaptive-tmin",
    ("timesteps", "disagreement-t-min"): "dgpo-adaptive-tmin",
    ("timesteps", "dsm-gap-t-min"): "dgpo-adaptive-tmin",
    ("sampler", "flow-sde"): "dgpo-baselines",
    ("sampler", "flow-cps"): "dgpo-baselines",
    ("objective", "flow-grpo"): "dgpo-baselines",
    ("objective", "diffusion-dpo"): "dgpo-baselines",
    ("objective", "diffusion-nft"): "dgpo-baselines",
    ("objective", "awm"): "dgpo-baselines",
    ("reward", "geneval"): "dgpo-geneval",
    ("reward", "geneval-official"): "dgpo-geneval",
    ("reward", "geneval-flowgrpo"): "dgpo-geneval",
    ("reward", "pickscore"): "dgpo-pickscore",
    ("reward", "clipscore"): "dgpo-pickscore",
    ("reward", "aesthetic"): "dgpo-pickscore",
    ("reward", "ocr"): "dgpo-ocr",
    ("prompts", "ocr"): "dgpo-ocr",
    ("detector", "mask2former"): "dgpo-geneval",
    ("prompts", "geneval"): "dgpo-geneval",
    ("detector", "shapes"): "dgpo-miniature",
    ("prompts", "miniature"): "dgpo-miniature",
    ("prompts", "miniature-signs"): "dgpo-miniature",
    ("backbone", "wan"): "dgpo-wan",
    ("backbone", "flux"): "dgpo-diffusers",
    ("reward", "frames"): "dgpo-video",
    ("reward", "motion"): "dgpo-video",
    ("reward", "miniature-motion"): "dgpo-video",
    ("prompts", "miniature-video"): "dgpo-video",
}
"""Parts of the project's own plugins: an unknown one of these names says what to install."""
PLACES = {"worker": "dgpo-remote", "service": "dgpo-remote"}
"""The same of places where rewards run."""


class NoOptions(Options):
    """For parts without options."""


OURS = ("dgpo_core", "dgpo_cli", "dgpo_schemas")
MOST_PARTS = 1000
"""Parts of a kind that one plugin may declare: a generator that never ends would be no list."""


@dataclass(frozen=True, slots=True)
class RegisteredPart:
    """A declared part and where it came from. contract: the version of the contract that its plugin declares."""

    part: Part
    kind: str
    distribution: str
    version: str
    contract: int | None = None


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that was set aside, and why."""

    distribution: str
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution} (entry point {self.entry_point}): {self.reason}"


class Registry:
    """Everything that installed plugins declare."""

    def __init__(self, *, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager("dgpo")
        self._manager.add_hookspecs(hookspecs)
        self._parts: dict[str, dict[str, RegisteredPart]] = {kind: {} for kind in KINDS}
        self._claimed_twice: dict[tuple[str, str], list[str]] = {}
        self._versions: dict[str, str] = {}
        self._muted: set[str] = set()
        self.broken: list[BrokenPlugin] = []
        if discover:
            damaged: list[tuple[str, str]] = []
            for distribution, version, entry_point in entry_points(damaged):
                self._load(distribution, version, entry_point)
            for distribution, reason in damaged:
                self._set_aside(distribution, "unknown", reason)

    # -- discovery ----------------------------------------------------------------------------------------------

    def _load(self, distribution: str, version: str, entry_point: importlib.metadata.EntryPoint) -> None:
        self._versions[distribution] = version
        who = f"plugin {entry_point.name} of {distribution} {version}"
        pressed: Callable[[], bool] = bool
        try:
            with isolated(who) as pressed:
                module = entry_point.load()
        except BaseException as error:  # a plugin may throw anything, and means itself
            if pressed():
                log.warning("stopped while %s was imported", who)
                raise
            self._set_aside(distribution, entry_point.name, f"importing {entry_point.value} failed with {told(error)}")
            return
        try:
            self.register(module, distribution=distribution, version=version)
        except PluginError as error:
            self._set_aside(distribution, entry_point.name, str(error))

    def _set_aside(self, distribution: str, entry_point: str, reason: str) -> None:
        self.broken.append(BrokenPlugin(distribution, entry_point, reason))

    def register(self, plugin: object, *, distribution: str, version: str = "0") -> None:
        """Add a module or object of hook implementations. Raises PluginError, leaving nothing of it registered."""
        name = f"{distribution}:{getattr(plugin, '__name__', type(plugin).__name__)}"
        if self._manager.has_plugin(name) or self._manager.is_registered(plugin):
            raise PluginError(f"{name} is registered already; declare it under one entry point only")
        pressed: Callable[[], bool] = bool
        contract = None
        try:
            with isolated(f"plugin {name}", "declared its parts") as pressed:
                contract = _declared_contract(plugin)
                self._manager.register(plugin, name=name)
                self._manager.check_pending()
                check_hooks(plugin)
                found = list(self._declared(plugin))
        except BaseException as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            if contract not in (None, contract_version.VERSION) and not pressed():
                raise ContractError(contract_version.why_not(contract)) from error
            if isinstance(error, PluginError) or pressed():
                raise
            text = str(error) if isinstance(error, pluggy.PluginValidationError) else told(error)
            raise PluginError(f"{text}; see dgpo_core.hookspecs for the hooks and their arguments") from error
        self._versions[distribution] = version
        for kind, part in found:
            self._add(RegisteredPart(part, kind, distribution, version, contract))

    def _declared(self, plugin: object) -> Iterator[tuple[str, Part]]:
        for kind, hook in KINDS.items():
            seen: set[str] = set()
            for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                try:
                    parts = list(itertools.islice(implementation.function(), MOST_PARTS + 1))
                except BaseException as error:
                    raise PluginError(f"{hook} failed with {told(error)}") from error
                if len(parts) > MOST_PARTS:
                    raise PluginError(f"{hook} declares more than {MOST_PARTS} parts")
                for part in parts:
                    check_part(hook, part)
                    if part.name in seen:
                        raise PluginError(f"{hook}: {part.name} is declared twice; give one of them another name")
                    seen.add(part.name)
                    yield kind, part

    def _add(self, registered: RegisteredPart) -> None:
        key = (registered.kind, registered.part.name)
        parts = self._parts[registered.kind]
        if registered.part.name in parts or key in self._claimed_twice:
            claims = self._claimed_twice.setdefault(key, [])
            earlier = parts.pop(registered.part.name, None)
            claims.extend([earlier.distribution] if earlier else [])
            claims.append(registered.distribution)
        else:
            parts[registered.part.name] = registered

    # -- access -------------------------------------------------------------------------------------------------

    def parts(self, kind: str) -> Mapping[str, RegisteredPart]:
        """All usable parts of a kind, by name."""
        return dict(sorted(self._parts[kind].items()))

    def conflicts(self) -> Mapping[tuple[str, str], list[str]]:
        """(kind, name) claimed by several distributions, and which."""
        return dict(self._claimed_twice)

    def distributions(self) -> dict[str, str]:
        """Every distribution with plugins, and its version."""
        return dict(sorted(self._versions.items()))

    def find(self, kind: str, name: str) -> RegisteredPart:
        """A part by name. Raises PluginError saying what there is, what is near, and what to install, or that the part
        says it was made for another version of the contract."""
        noun = NOUNS.get(kind, kind)
        if (kind, name) in self._claimed_twice:
            owners = " and ".join(sorted(self._claimed_twice[kind, name]))
            raise PluginError(f"{noun} {name!r} is claimed by {owners}: uninstall one of them")
        found = self._parts[kind].get(name)
        if found is not None:
            _check_declared(found)
            return found
        message = f"unknown {noun} {name!r}"
        if (kind, name) in BUNDLED:
            message += f"; it comes with {BUNDLED[kind, name]}: pip install {BUNDLED[kind, name]}"
        else:
            message += nearest(name, self._parts[kind])
            message += f" (installed: {', '.join(self.parts(kind)) or 'none'})"
        for broken in self.broken:
            message += f"\n  a plugin could not be loaded and may own it: {broken}"
        raise PluginError(message)

    def options_model(self, registered: RegisteredPart) -> type[BaseModel]:
        """The model of a part's options. Raises PluginError if its dotted path leads nowhere."""
        declared = registered.part.options
        if declared is None:
            return NoOptions
        if isinstance(declared, str):
            declared = self._import(_owner(registered), declared)
        if not (inspect.isclass(declared) and issubclass(declared, BaseModel)):
            raise PluginError(f"{_owner(registered)}: its options must be a pydantic model, not {declared!r}")
        return declared

    def options_models(self) -> dict[str, dict[str, type[BaseModel]]]:
        """Kind to name to options model, of every usable part."""
        return {kind: {n: self.options_model(p) for n, p in self.parts(kind).items()} for kind in KINDS}

    def implementation(self, registered: RegisteredPart) -> Any:
        """A part's class, imported. Raises PluginError if it cannot be or does not keep its contract; ContractError if
        it was made for another version of that."""
        _check_declared(registered)
        implementation = self._import(_owner(registered), registered.part.implementation)
        names = CONTRACTS.get(registered.kind)
        if names is not None:
            contracts = importlib.import_module("dgpo_core.contracts")
            bases = tuple(getattr(contracts, name) for name in names)
            if not (inspect.isclass(implementation) and issubclass(implementation, bases)):
                raise PluginError(f"{_owner(registered)}: {registered.part.implementation} is no {' or '.join(names)}")
            changes = tuple(contract_version.changes_in(registered.kind, implementation, bases[0]))
            if changes:  # before what is abstract: that is so because the contract has changed
                why = contract_version.why_not(contract_version.VERSION - 1, changes)
                raise ContractError(f"{_owner(registered)}: {why}")
            if inspect.isabstract(implementation):
                missing = ", ".join(sorted(getattr(implementation, "__abstractmethods__", ())))
                raise PluginError(f"{_owner(registered)}: {registered.part.implementation} lacks {missing}")
            base = next(one for one in bases if issubclass(implementation, one))
            if (misfit := next(misfits(implementation, base), None)) is not None:
                raise PluginError(f"{_owner(registered)}: {registered.part.implementation}: {misfit}")
        return implementation

    def check_contract(self, registered: RegisteredPart) -> None:
        """Raise ContractError for a part that was made for another version of the contract.

        Where its plugin declares no version, the class of a kind that has changed is imported to see; one that cannot
        be imported is refused when it is used.
        """
        _check_declared(registered)
        ours = registered.part.implementation.partition(".")[0] in OURS
        if registered.contract is None and registered.kind in contract_version.CHANGED and not ours:
            try:
                self.implementation(registered)
            except ContractError:
                raise
            except PluginError:
                return

    def create(self, kind: str, block: UseBlock | str, **keywords: Any) -> Any:
        """Import a part's class, validate its options and build it.

        Raises PluginError for what the plugin does wrong and UserError for what its options or files do.
        """
        block = UseBlock(use=block) if isinstance(block, str) else block
        registered = self.find(kind, block.use)
        model = self.options_model(registered)
        owner = _owner(registered)
        try:
            options = model.model_validate(block.options)
        except ValidationError as error:
            found = explain(model, block.options, error)
            lines = [f"{kind} {block.use}: {dotted(('options', *path))}: {message}" for path, message in found]
            raise UserError("\n".join(lines)) from error
        except Exception as error:
            raise PluginError(f"{owner}: its options cannot be checked: {told(error)}") from error
        implementation = self.implementation(registered)
        if kind == "backbone":
            self._check_section(implementation, block)
        with ctrl_c() as pressed, no_exit():
            try:
                if kind in WITH_SECTION:
                    return implementation(block, options, **keywords)
                return implementation(options, **keywords)
            except DgpoError:
                raise
            except BaseException as error:  # some libraries exit where others raise
                if pressed():
                    raise
                raise UserError(f"{owner}: could not be built: {told(error)}") from error

    def _check_section(self, implementation: Any, block: UseBlock) -> None:
        from dgpo_core.plugins.sections import (
            check_section,  # it knows the whole run file, which takes a while to import
        )
        from dgpo_schemas.run import BackboneSection

        if isinstance(block, BackboneSection):
            check_section(implementation, block)

    def _import(self, owner: str, path: str) -> Any:
        module, _, name = path.partition(":")
        pressed: Callable[[], bool] = bool
        try:
            with isolated(owner) as pressed:
                return functools.reduce(getattr, name.split("."), importlib.import_module(module))
        except BaseException as error:
            if pressed():
                log.warning("stopped while %s was imported", owner)
                raise
            raise PluginError(f"{owner}: cannot import {path}: {told(error)}") from error

    def place(self, key: str) -> Any:
        """The function that connects a reward to the place which this key of its block stands for, imported. Raises
        PluginError saying what to install."""
        for implementation in self._manager.hook.dgpo_places.get_hookimpls():
            owner = f"plugin {implementation.plugin_name}"
            try:
                declared: Any = implementation.function()
                path = declared.get(key)
            except Exception as error:
                raise PluginError(f"{owner}: dgpo_places failed with {told(error)}") from error
            if path is not None:
                return self._import(owner, path)
        needed = PLACES.get(key)
        raise PluginError(
            f"rewards with `{key}` need a plugin that is not installed" + (f": pip install {needed}" if needed else "")
        )

    def blame(self, error: BaseException) -> str | None:
        """What a plugin has thrown, with its distribution and place; None if it was not a plugin: of the frames that
        are dgpo's or a plugin's, the innermost counts."""
        owners = {
            p.part.implementation.partition(":")[0].partition(".")[0]: p for k in KINDS for p in self.parts(k).values()
        }
        for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
            if package in OURS:
                return None
            if package in owners:
                part = owners[package]
                where = f"{frame.f_code.co_filename}:{line}"
                return f"plugin {part.distribution} {part.version} failed with {error_text(error)} (at {where})"
        return None

    # -- observers ----------------------------------------------------------------------------------------------

    def notify(self, hook: str, **keywords: Any) -> None:
        """Call every observer of a life-cycle hook; one that raises is named in the log, muted, and disturbs nobody."""
        # pluggy keeps them in the reverse of the order in which it calls them.
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            if implementation.plugin_name in self._muted:
                continue
            arguments = {name: keywords[name] for name in implementation.argnames}
            with ctrl_c() as pressed, no_exit():
                try:
                    implementation.function(**arguments)
                except BaseException as error:
                    if pressed():
                        raise
                    self._muted.add(implementation.plugin_name)
                    log.warning(
                        "observer %s failed in %s and is switched off: %s",
                        implementation.plugin_name, hook, error_text(error),
                    )  # fmt: skip


@functools.cache
def get_registry() -> Registry:
    """The registry of everything installed, made once."""
    return Registry()


def _owner(registered: RegisteredPart) -> str:
    noun = NOUNS.get(registered.kind, registered.kind)
    return f"{noun} {registered.part.name} of {registered.distribution} {registered.version}"


def _declared_contract(plugin: object) -> int | None:
    """The version of the contract that a plugin says it was made for. Raises PluginError if that is no number."""
    declared = getattr(plugin, contract_version.ATTRIBUTE, None)
    if declared is None or (isinstance(declared, int) and not isinstance(declared, bool)):
        return declared
    raise PluginError(
        f"{contract_version.ATTRIBUTE} = {clean(repr(declared), 100)}: it is the version of the contract as a number, "
        f"such as {contract_version.VERSION}"
    )


def _check_declared(registered: RegisteredPart) -> None:
    if registered.contract not in (None, contract_version.VERSION):
        raise ContractError(f"{_owner(registered)}: {contract_version.why_not(registered.contract)}")
