"""Discover plugins, and look up and create their components by name.

Entry points of the group `dgpo` name modules with hook implementations. Each is loaded separately. A plugin that fails
to import, implements an unknown hook or returns invalid declarations is recorded with the reason; only using one of its
components is an error. Implementations are imported when a run uses them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pluggy

from dgpo_core import hookspecs
from dgpo_core.contracts import version as contract_version
from dgpo_core.errors import ContractError, PluginError
from dgpo_core.hookspecs import Command, Component, Kind, hookspec
from dgpo_core.plugins.blame import blamed
from dgpo_core.plugins.declared import (
    BrokenPlugin,
    RegisteredCommand,
    RegisteredComponent,
    RegisteredTransport,
    contract_of,
    declarations,
    declared_transports,
)
from dgpo_core.plugins.discovery import check_hooks, check_kind, entry_points
from dgpo_core.plugins.isolation import imported, isolated, reported
from dgpo_core.plugins.names import Names
from dgpo_core.plugins.observers import notify

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dgpo_schemas.base import UseBlock

__all__ = ["Registry", "get_registry"]

log = logging.getLogger(__name__)


class Registry(Names):
    """The declarations of all installed plugins."""

    def __init__(self, *, discover: bool = True) -> None:
        super().__init__()
        self._manager = pluggy.PluginManager("dgpo")
        self._manager.add_hookspecs(hookspecs)
        for kind in self.kinds.values():
            self._specify(kind)
        self._muted: set[str] = set()
        if discover:
            self._discover()

    # -- discovery ----------------------------------------------------------------------------------------------

    def _discover(self) -> None:
        damaged: list[tuple[str, str]] = []
        loaded = []
        for distribution, version, entry_point in entry_points(damaged):
            self._versions[distribution] = version
            try:
                loaded.append((distribution, version, entry_point.name, _module(distribution, version, entry_point)))
            except PluginError as error:
                self.broken.append(BrokenPlugin(distribution, entry_point.name, str(error)))
        for distribution, version, name, module in sorted(loaded, key=lambda item: "dgpo_kinds" not in dir(item[3])):
            try:
                self.register(module, distribution=distribution, version=version)
            except PluginError as error:
                self.broken.append(BrokenPlugin(distribution, name, str(error)))
        self.broken += [BrokenPlugin(distribution, "unknown", reason) for distribution, reason in damaged]

    def register(self, plugin: object, *, distribution: str, version: str = "0") -> None:
        """Register a module or object with hook implementations. Raises PluginError and registers nothing on error."""
        name = f"{distribution}:{getattr(plugin, '__name__', type(plugin).__name__)}"
        if self._manager.has_plugin(name) or self._manager.is_registered(plugin):
            raise PluginError(f"{name} is already registered; declare it under one entry point only")
        pressed: Callable[[], bool] = bool
        contract = None
        try:
            with isolated(f"plugin {name}", "declared its components") as pressed:
                contract = contract_of(plugin)
                self._manager.register(plugin, name=name)
                kinds = self.kinds | dict(self._kinds_of(plugin))
                check_hooks(plugin, [kind.hook for kind in kinds.values()])
                self._manager.check_pending()
                components = [
                    (kind, item) for kind in kinds.values() for item in self._declared(plugin, kind.hook, Component)
                ]
                commands = list(self._declared(plugin, "dgpo_commands", Command))
                transports = dict(self._transports_of(plugin))
        except BaseException as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            if contract not in (None, contract_version.VERSION) and not pressed():
                raise ContractError(contract_version.why_not(contract)) from error
            if isinstance(error, PluginError) or pressed():
                raise
            text = str(error) if isinstance(error, pluggy.PluginValidationError) else reported(error)
            raise PluginError(f"{text}; dgpo_core.hookspecs lists the hooks and their arguments") from error
        self.brought |= {kind: distribution for kind in kinds if kind not in self.kinds}
        self.kinds = kinds
        self._versions[distribution] = version
        for kind, component in components:
            noun = kind.noun or kind.name
            self._add_component(RegisteredComponent(component, kind.name, distribution, version, contract, noun))
        for command in commands:
            self._add_command(RegisteredCommand(command, distribution, version))
        for key, target in transports.items():
            self._add_transport(RegisteredTransport(key, target, distribution, version))

    def _declared(self, plugin: object, hook: str, sort: type[Any]) -> Iterator[Any]:
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return declarations([impl for impl in implementations if impl.plugin is plugin], hook, sort)

    def _transports_of(self, plugin: object) -> Iterator[tuple[str, str]]:
        implementations = self._manager.hook.dgpo_reward_transports.get_hookimpls()
        return declared_transports([impl for impl in implementations if impl.plugin is plugin])

    def _kinds_of(self, plugin: object) -> Iterator[tuple[str, Kind]]:
        """Yield the kinds that a plugin defines, and add the specifications of their hooks."""
        known = dict(self.kinds)
        for kind in self._declared(plugin, "dgpo_kinds", Kind):
            check_kind(kind, known)
            known[kind.name] = kind
            self._specify(kind)
            yield kind.name, kind

    def _specify(self, kind: Kind) -> None:
        """Add the hook specification of a kind, unless a plugin that was rejected has already added it."""
        caller = getattr(self._manager.hook, kind.hook, None)
        if caller is None or not caller.has_spec():
            self._manager.add_hookspecs(type("OfKind", (), {kind.hook: hookspec(lambda: None)}))

    # -- building ------------------------------------------------------------------------------------------------

    def options_model(self, registered: RegisteredComponent) -> type[BaseModel]:
        """Return the options model of a component. Raises PluginError if it cannot be imported."""
        from dgpo_core.plugins import building

        return building.options_model(registered)

    def options_models(self) -> dict[str, dict[str, type[BaseModel]]]:
        """Return {kind: {name: options model}} of all usable components."""
        return {kind: {n: self.options_model(p) for n, p in self.components(kind).items()} for kind in self.kinds}

    def implementation(self, registered: RegisteredComponent) -> Any:
        """Import the class of a component.

        Raises PluginError if the import fails or the class violates its contract, and ContractError if it targets
        another version of the contract.
        """
        from dgpo_core.plugins import building

        return building.implementation(registered, self.kinds[registered.kind])

    def check_contract(self, registered: RegisteredComponent) -> None:
        """Raise ContractError if a component targets another version of the plugin contract.

        If its plugin declares no version, imports the class, but only for kinds whose contract has changed. A failed
        import is ignored here and reported when the component is used.
        """
        from dgpo_core.plugins import building

        building.check_contract(registered, self.kinds[registered.kind])

    def create(self, kind: str, block: UseBlock | str, *, constructor: str | None = None, **keywords: Any) -> Any:
        """Import a component's class, validate its options and construct it.

        constructor: name of a class method that constructs it; by default the class itself.

        Raises PluginError for errors of the plugin, and UserError for invalid options or input files.
        """
        from dgpo_core.plugins import building
        from dgpo_schemas.base import UseBlock

        block = UseBlock(use=block) if isinstance(block, str) else block
        return building.create(self.find(kind, block.use), self.kinds[kind], block, constructor, **keywords)

    def transport(self, key: str) -> Any:
        """Import the `connect` function for this key of a reward's section. Raises PluginError with what to install."""
        registered = self.find_transport(key)
        return imported(str(registered), registered.target)

    def blame(self, error: BaseException) -> str | None:
        """Describe an exception raised by a plugin, with its distribution and location; None if no plugin raised it."""
        components = (component for kind in self.kinds for component in self.components(kind).values())
        paths = {
            component.component.implementation: f"{component.distribution} {component.version}"
            for component in components
        }
        if not isinstance(error, SystemExit):  # commands may exit this way
            paths |= {c.command.target: f"{c.distribution} {c.version}" for c in self._commands.values()}
        paths |= {t.target: f"{t.distribution} {t.version}" for t in self.transports.values()}
        return blamed(error, {path.partition(":")[0].partition(".")[0]: owner for path, owner in paths.items()})

    def notify(self, hook: str, **keywords: Any) -> None:
        """Call every observer of a life-cycle hook. An observer that raises is logged and disabled."""
        notify(self._manager, self._muted, hook, keywords)


@functools.cache
def get_registry() -> Registry:
    """Return the registry of all installed plugins, created on the first call."""
    return Registry()


def _module(distribution: str, version: str, entry_point: importlib.metadata.EntryPoint) -> Any:
    """Import the module of an entry point. Raises PluginError for any exception of the plugin."""
    who = f"plugin {entry_point.name} of {distribution} {version}"
    pressed: Callable[[], bool] = bool
    try:
        with isolated(who) as pressed:
            return entry_point.load()
    except BaseException as error:
        if pressed():
            log.warning("interrupted while %s was imported", who)
            raise
        if isinstance(error, ContractError):  # complete without the place of the import
            raise
        raise PluginError(f"importing {entry_point.value} failed with {reported(error)}") from error
