"""Discovery of plugins and access to their parts, by name.

Entry points of the group `dgpo` name light modules of hook implementations. Each is loaded on its own: one that does
not import, misspells a hook or declares nonsense is set aside with its reason, and only asking for one of its parts
fails. Implementations are imported when a run uses them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pluggy

from dgpo_core import hookspecs
from dgpo_core.contracts import version as contract_version
from dgpo_core.errors import ContractError, PluginError, UserError
from dgpo_core.hookspecs import KINDS, Command, Kind, Part, hookspec
from dgpo_core.plugins.blame import blamed
from dgpo_core.plugins.declared import (
    BrokenPlugin,
    RegisteredCommand,
    RegisteredPart,
    check_declared,
    contract_of,
    declarations,
)
from dgpo_core.plugins.discovery import check_hooks, check_kind, entry_points
from dgpo_core.plugins.installable import how_to_install
from dgpo_core.plugins.isolation import isolated, told
from dgpo_core.plugins.observers import notify

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dgpo_schemas.base import UseBlock

__all__ = ["Registry", "get_registry"]

log = logging.getLogger(__name__)
SHOWN = " (`dgpo plugins list` shows all)"
R = TypeVar("R", RegisteredPart, RegisteredCommand)


class Registry:
    """Everything that installed plugins declare."""

    def __init__(self, *, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager("dgpo")
        self._manager.add_hookspecs(hookspecs)
        self.kinds: dict[str, Kind] = dict(KINDS)
        self.brought: dict[str, str] = {}  # kind of a plugin to its distribution
        self._parts: dict[str, dict[str, RegisteredPart]] = {}
        self._commands: dict[str, RegisteredCommand] = {}
        self._claimed_twice: dict[tuple[str, str], list[str]] = {}
        self._versions: dict[str, str] = {}
        self._muted: set[str] = set()
        self.broken: list[BrokenPlugin] = []
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
            with isolated(f"plugin {name}", "declared its parts") as pressed:
                contract = contract_of(plugin)
                self._manager.register(plugin, name=name)
                kinds = self.kinds | dict(self._kinds_of(plugin))
                check_hooks(plugin, [kind.hook for kind in kinds.values()])
                self._manager.check_pending()
                parts = [(kind, one) for kind in kinds.values() for one in self._declared(plugin, kind.hook, Part)]
                commands = list(self._declared(plugin, "dgpo_commands", Command))
        except BaseException as error:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            if contract not in (None, contract_version.VERSION) and not pressed():
                raise ContractError(contract_version.why_not(contract)) from error
            if isinstance(error, PluginError) or pressed():
                raise
            text = str(error) if isinstance(error, pluggy.PluginValidationError) else told(error)
            raise PluginError(f"{text}; see dgpo_core.hookspecs for the hooks and their arguments") from error
        self.brought |= {kind: distribution for kind in kinds if kind not in self.kinds}
        self.kinds = kinds
        self._versions[distribution] = version
        for kind, part in parts:
            found = RegisteredPart(part, kind.name, distribution, version, contract, kind.noun or kind.name)
            self._add(kind.name, part.name, self._parts.setdefault(kind.name, {}), found)
        for command in commands:
            self._add("command", command.name, self._commands, RegisteredCommand(command, distribution, version))
        self._refuse_below_commands()

    def _declared(self, plugin: object, hook: str, sort: type[Any]) -> Iterator[Any]:
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        return declarations([one for one in implementations if one.plugin is plugin], hook, sort)

    def _kinds_of(self, plugin: object) -> Iterator[tuple[str, Kind]]:
        """The kinds that a plugin brings, whose hooks are known from now on."""
        for kind in self._declared(plugin, "dgpo_kinds", Kind):
            check_kind(kind, self.kinds)
            caller = getattr(self._manager.hook, kind.hook, None)
            if caller is None or not caller.has_spec():
                self._manager.add_hookspecs(types.SimpleNamespace(**{kind.hook: hookspec(lambda: None)}))
            yield kind.name, kind

    def _add(self, kind: str, name: str, known: dict[str, R], registered: R) -> None:
        """Into the table of its kind, unless others claim the name too: then nobody has it."""
        if name in known or (kind, name) in self._claimed_twice:
            claims = self._claimed_twice.setdefault((kind, name), [])
            earlier = known.pop(name, None)
            claims.extend([earlier.distribution] if earlier else [])
            claims.append(registered.distribution)
        else:
            known[name] = registered

    def _refuse_below_commands(self) -> None:
        """`train fast` could not be told from `train` and its argument: `train` keeps its meaning."""
        for name, registered in list(self._commands.items()):
            above = self._commands.get(name.partition(" ")[0])
            if above is not None and above is not registered and above.command.target:
                del self._commands[name]
                self._claimed_twice["command", name] = [above.distribution, registered.distribution]

    # -- access -------------------------------------------------------------------------------------------------

    def parts(self, kind: str) -> Mapping[str, RegisteredPart]:
        """All usable parts of a kind, by name."""
        return dict(sorted(self._parts.get(kind, {}).items()))

    def commands(self) -> Mapping[str, RegisteredCommand]:
        """All usable commands by name, in the order in which they are listed."""
        return dict(sorted(self._commands.items(), key=lambda item: (" " in item[0], item[1].command.order, item[0])))

    def conflicts(self) -> Mapping[tuple[str, str], list[str]]:
        """(kind or "command", name) claimed by several distributions, and which."""
        return dict(self._claimed_twice)

    def distributions(self) -> dict[str, str]:
        """Every distribution with plugins, and its version."""
        return dict(sorted(self._versions.items()))

    def find(self, kind: str, name: str) -> RegisteredPart:
        """A part by name. Raises PluginError saying what there is, what is near, and what to install, or that the part
        says it was made for another version of the contract."""
        known = self._parts.get(kind, {})
        found = known.get(name)
        if found is None:
            noun = self.kinds[kind].noun or kind if kind in self.kinds else kind
            self._refuse(kind, name, noun, f"unknown {noun} {name!r}", known, "installed")
        check_declared(found)
        return found

    def named(self, name: str, kind: str | None = None) -> list[RegisteredPart]:
        """Every part of a name, of one kind or of all. Raises PluginError, as `find` does, if there is none."""
        kinds = self.kinds if kind is None else (kind,)
        found = [known[name] for one in kinds if name in (known := self.parts(one))]
        if found:
            return found
        claimed = [one for one in kinds if (one, name) in self._claimed_twice or how_to_install(one, name)]
        if kind is not None or claimed:
            self.find(claimed[0] if claimed else str(kind), name)
        what = f"no part is called {name!r}"
        self._refuse("", name, "part", what, {other for one in kinds for other in self.parts(one)}, more=SHOWN)

    def kind(self, name: str, where: str) -> Kind:
        """A kind by name. Raises UserError, which says where it was asked for: "--kind"."""
        if name in self.kinds:
            return self.kinds[name]
        from dgpo_schemas.problems import nearest

        near = ((how := how_to_install("kind", name)) and f"; {how}") or nearest(name, self.kinds)
        raise UserError(f"{where} {name}: there is no such kind{near} (kinds: {', '.join(self.kinds)})")

    def find_command(self, name: str) -> RegisteredCommand:
        """A command by name. Raises PluginError saying what is near, and what to install."""
        if name not in self._commands:
            self._refuse("command", name, "command", f"there is no command {name!r}", self._commands)
        return self._commands[name]

    def _refuse(
        self, kind: str, name: str, noun: str, what: str, known: Collection[str], listed: str = "", more: str = ""
    ) -> NoReturn:
        """Raise PluginError for a name that nothing has, or more than one."""
        if owners := self._claimed_twice.get((kind, name)):
            raise PluginError(f"{noun} {name!r} is claimed by {' and '.join(sorted(owners))}: uninstall one of them")
        if how := how_to_install(kind, name):
            what += f"; {how}"
        else:
            from dgpo_schemas.problems import nearest

            what += nearest(name, known) + (f" ({listed}: {', '.join(sorted(known)) or 'none'})" if listed else more)
        lines = [what, *(f"a plugin could not be loaded and may own it: {broken}" for broken in self.broken)]
        raise PluginError("\n  ".join(lines))

    def options_model(self, registered: RegisteredPart) -> type[BaseModel]:
        """The model of a part's options. Raises PluginError if its dotted path leads nowhere."""
        from dgpo_core.plugins import building

        return building.options_model(registered)

    def options_models(self) -> dict[str, dict[str, type[BaseModel]]]:
        """Kind to name to options model, of every usable part."""
        return {kind: {n: self.options_model(p) for n, p in self.parts(kind).items()} for kind in self.kinds}

    def implementation(self, registered: RegisteredPart) -> Any:
        """A part's class, imported. Raises PluginError if it cannot be or does not keep its contract; ContractError if
        it was made for another version of that."""
        from dgpo_core.plugins import building

        return building.implementation(registered, self.kinds[registered.kind])

    def check_contract(self, registered: RegisteredPart) -> None:
        """Raise ContractError for a part that was made for another version of the contract.

        Where its plugin declares no version, the class of a kind that has changed is imported to see; one that cannot
        be imported is refused when it is used.
        """
        from dgpo_core.plugins import building

        building.check_contract(registered, self.kinds[registered.kind])

    def create(self, kind: str, block: UseBlock | str, **keywords: Any) -> Any:
        """Import a part's class, validate its options and build it.

        Raises PluginError for what the plugin does wrong and UserError for what its options or files do.
        """
        from dgpo_core.plugins import building

        return building.create(self, kind, block, **keywords)

    def blame(self, error: BaseException) -> str | None:
        """What a plugin has thrown, with its distribution and place; None if it was not a plugin."""
        parts = (part for kind in self.kinds for part in self.parts(kind).values())
        paths = {part.part.implementation: f"{part.distribution} {part.version}" for part in parts}
        paths |= {one.command.target: f"{one.distribution} {one.version}" for one in self._commands.values()}
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
        raise PluginError(f"importing {entry_point.value} failed with {told(error)}") from error
