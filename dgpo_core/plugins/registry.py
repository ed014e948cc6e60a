"""Discovery of plugins and access to their components, by name.

Entry points of the group `dgpo` name light modules of hook implementations. Each is loaded on its own: one that does
not import, misspells a hook or declares nonsense is set aside with its reason, and only asking for one of its
components fails. Implementations are imported when a run uses them."""

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
    """Everything that installed plugins declare."""

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
        for distribution, version, name, module in sorted(loaded, key=lambda one: "dgpo_kinds" not in dir(one[3])):
            try:
                self.register(module, distribution=distribution, version=version)
            except PluginError as error:
                self.broken.append(BrokenPlugin(distribution, name, str(error)))
        self.broken += [BrokenPlugin(distribution, "unknown", reason) for distribution, reason in damaged]

    def register(self, plugin: object, *, distribution: str, version: str = "0") -> None:
        """Add a module or object of hook implementations. Raises PluginError, leaving nothing of it registered."""
        name = f"{distribution}:{getattr(plugin, '__name__', type(plugin).__name__)}"
        if self._manager.has_plugin(name) or self._manager.is_registered(plugin):
            raise PluginError(f"{name} is registered already; declare it under one entry point only")
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
                    (kind, one) for kind in kinds.values() for one in self._declared(plugin, kind.hook, Component)
                ]
                commands = list(self._declared(plugin, "dgpo_commands", Command))
                places = dict(self._transports_of(plugin))
        except BaseException as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            if contract not in (None, contract_version.VERSION) and not pressed():
                raise ContractError(contract_version.why_not(contract)) from error
            if isinstance(error, PluginError) or pressed():
                raise
            text = str(error) if isinstance(error, pluggy.PluginValidationError) else reported(error)
            raise PluginError(f"{text}; see dgpo_core.hookspecs for the hooks and their arguments") from error
        self.brought |= {kind: distribution for kind in kinds if kind not in self.kinds}
        self.kinds = kinds
        self._versions[distribution] = version
        for kind, component in components:
            noun = kind.noun or kind.name
            self._add_component(RegisteredComponent(component, kind.name, distribution, version, contract, noun))
        for command in commands:
            self._add_command(RegisteredCommand(command, distribution, version))
        for key, target in places.items():
            self._add_transport(RegisteredTransport(key, target, distribution, version))

    def _declared(self, plugin: object, hook: str, sort: type[Any]) -> Iterator[Any]:
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return declarations([one for one in implementations if one.plugin is plugin], hook, sort)

    def _transports_of(self, plugin: object) -> Iterator[tuple[str, str]]:
        implementations = self._manager.hook.dgpo_reward_transports.get_hookimpls()
        return declared_transports([one for one in implementations if one.plugin is plugin])

    def _kinds_of(self, plugin: object) -> Iterator[tuple[str, Kind]]:
        """The kinds that a plugin brings, whose hooks are known from now on."""
        known = dict(self.kinds)
        for kind in self._declared(plugin, "dgpo_kinds", Kind):
            check_kind(kind, known)
            known[kind.name] = kind
            self._specify(kind)
            yield kind.name, kind

    def _specify(self, kind: Kind) -> None:
        """The hook of a kind, unless a plugin that was refused has brought it before."""
        caller = getattr(self._manager.hook, kind.hook, None)
        if caller is None or not caller.has_spec():
            self._manager.add_hookspecs(type("OfKind", (), {kind.hook: hookspec(lambda: None)}))

    # -- building ------------------------------------------------------------------------------------------------

    def options_model(self, registered: RegisteredComponent) -> type[BaseModel]:
        """The model of a component's options. Raises PluginError if its dotted path leads nowhere."""
        from dgpo_core.plugins import building

        return building.options_model(registered)

    def options_models(self) -> dict[str, dict[str, type[BaseModel]]]:
        """Kind to name to options model, of every usable component."""
        return {kind: {n: self.options_model(p) for n, p in self.components(kind).items()} for kind in self.kinds}

    def implementation(self, registered: RegisteredComponent) -> Any:
        """A component's class, imported. Raises PluginError if it cannot be or does not keep its contract;
        ContractError if it was made for another version of that."""
        from dgpo_core.plugins import building

        return building.implementation(registered, self.kinds[registered.kind])

    def check_contract(self, registered: RegisteredComponent) -> None:
        """Raise ContractError for a component that was made for another version of the contract.

        Where its plugin declares no version, the class of a kind that has changed is imported to see; one that cannot
        be imported is refused when it is used.
        """
        from dgpo_core.plugins import building

        building.check_contract(registered, self.kinds[registered.kind])

    def create(self, kind: str, block: UseBlock | str, **keywords: Any) -> Any:
        """Import a component's class, validate its options and build it.

        Raises PluginError for what the plugin does wrong and UserError for what its options or files do.
        """
        from dgpo_core.plugins import building
        from dgpo_schemas.base import UseBlock

        block = UseBlock(use=block) if isinstance(block, str) else block
        return building.create(self.find(kind, block.use), self.kinds[kind], block, **keywords)

    def place(self, key: str) -> Any:
        """The function that connects a reward to the place which this key of its block stands for, imported. Raises
        PluginError saying what to install."""
        found = self.find_transport(key)
        return imported(str(found), found.target)

    def blame(self, error: BaseException) -> str | None:
        """What a plugin has thrown, with its distribution and place; None if it was not a plugin."""
        components = (component for kind in self.kinds for component in self.components(kind).values())
        paths = {
            component.component.implementation: f"{component.distribution} {component.version}"
            for component in components
        }
        if not isinstance(error, SystemExit):  # which is how a command may end
            paths |= {one.command.target: f"{one.distribution} {one.version}" for one in self._commands.values()}
        paths |= {one.target: f"{one.distribution} {one.version}" for one in self.places.values()}
        return blamed(error, {path.partition(":")[0].partition(".")[0]: owner for path, owner in paths.items()})

    def notify(self, hook: str, **keywords: Any) -> None:
        """Call every observer of a life-cycle hook; one that raises is named in the log, muted, and disturbs nobody."""
        notify(self._manager, self._muted, hook, keywords)


@functools.cache
def get_registry() -> Registry:
    """The registry of everything installed, made once."""
    return Registry()


def _module(distribution: str, version: str, entry_point: importlib.metadata.EntryPoint) -> Any:
    """What an entry point names. Raises PluginError: a plugin may throw anything when it is imported."""
    who = f"plugin {entry_point.name} of {distribution} {version}"
    pressed: Callable[[], bool] = bool
    try:
        with isolated(who) as pressed:
            return entry_point.load()
    except BaseException as error:
        if pressed():
            log.warning("stopped while %s was imported", who)
            raise
        if isinstance(error, ContractError):  # complete without the place of the import
            raise
        raise PluginError(f"importing {entry_point.value} failed with {reported(error)}") from error
