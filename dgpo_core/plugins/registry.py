"""Discovery of plugins and access to their parts, by name.

Entry points of the group `dgpo` name light modules of hook implementations. Each is loaded on its own: one that does
not import, misspells a hook or declares nonsense is set aside with its reason, and only asking for one of its parts
fails. Implementations are imported when a run uses them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pluggy

from dgpo_core import hookspecs
from dgpo_core.contracts import version as contract_version
from dgpo_core.errors import ContractError, PluginError
from dgpo_core.hookspecs import KINDS
from dgpo_core.plugins.blame import blamed
from dgpo_core.plugins.declared import BrokenPlugin, RegisteredCommand, RegisteredPart, check_declared, noun_of
from dgpo_core.plugins.discovery import check_command, check_hooks, check_part, entry_points
from dgpo_core.plugins.installable import how_to_install
from dgpo_core.plugins.isolation import ctrl_c, isolated, no_exit, told
from dgpo_schemas.text import clean, error_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dgpo_schemas.base import UseBlock

__all__ = ["Registry", "get_registry"]

log = logging.getLogger(__name__)

MOST = 1000
"""Parts of a kind, or commands, that one plugin may declare: a generator that never ends would be no list."""


R = TypeVar("R", RegisteredPart, RegisteredCommand)


class Registry:
    """Everything that installed plugins declare."""

    def __init__(self, *, discover: bool = True) -> None:
        self._manager = pluggy.PluginManager("dgpo")
        self._manager.add_hookspecs(hookspecs)
        self._parts: dict[str, dict[str, RegisteredPart]] = {kind: {} for kind in KINDS}
        self._commands: dict[str, RegisteredCommand] = {}
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
                parts = [(kind, one) for kind in KINDS for one in self._declared(plugin, KINDS[kind], check_part)]
                commands = list(self._declared(plugin, "dgpo_commands", check_command))
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
        for kind, part in parts:
            self._add(kind, part.name, self._parts[kind], RegisteredPart(part, kind, distribution, version, contract))
        for command in commands:
            self._add("command", command.name, self._commands, RegisteredCommand(command, distribution, version))
        self._refuse_below_commands()

    def _declared(self, plugin: object, hook: str, check: Callable[[str, Any], None]) -> Iterator[Any]:
        """What a plugin's implementation of a hook returns, each looked at."""
        seen: set[str] = set()
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            if implementation.plugin is not plugin:
                continue
            try:
                found = list(itertools.islice(implementation.function(), MOST + 1))
            except BaseException as error:
                raise PluginError(f"{hook} failed with {told(error)}") from error
            if len(found) > MOST:
                raise PluginError(f"{hook} declares more than {MOST} parts")
            for one in found:
                check(hook, one)
                if one.name in seen:
                    raise PluginError(f"{hook}: {one.name} is declared twice; give one of them another name")
                seen.add(one.name)
                yield one

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
        return dict(sorted(self._parts[kind].items()))

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
        found = self._parts[kind].get(name)
        if found is None:
            noun = noun_of(kind)
            self._refuse(kind, name, noun, f"unknown {noun} {name!r}", self._parts[kind], "installed")
        check_declared(found)
        return found

    def find_command(self, name: str) -> RegisteredCommand:
        """A command by name. Raises PluginError saying what is near, and what to install."""
        if name not in self._commands:
            self._refuse("command", name, "command", f"there is no command {name!r}", self._commands)
        return self._commands[name]

    def _refuse(self, kind: str, name: str, noun: str, what: str, known: Collection[str], listed: str = "") -> NoReturn:
        """Raise PluginError for a name that nothing has, or more than one."""
        if owners := self._claimed_twice.get((kind, name)):
            raise PluginError(f"{noun} {name!r} is claimed by {' and '.join(sorted(owners))}: uninstall one of them")
        if how := how_to_install(kind, name):
            what += f"; {how}"
        else:
            from dgpo_schemas.problems import nearest

            what += nearest(name, known) + (f" ({listed}: {', '.join(sorted(known)) or 'none'})" if listed else "")
        for broken in self.broken:
            what += f"\n  a plugin could not be loaded and may own it: {broken}"
        raise PluginError(what)

    def options_model(self, registered: RegisteredPart) -> type[BaseModel]:
        """The model of a part's options. Raises PluginError if its dotted path leads nowhere."""
        from dgpo_core.plugins import building

        return building.options_model(registered)

    def options_models(self) -> dict[str, dict[str, type[BaseModel]]]:
        """Kind to name to options model, of every usable part."""
        return {kind: {n: self.options_model(p) for n, p in self.parts(kind).items()} for kind in KINDS}

    def implementation(self, registered: RegisteredPart) -> Any:
        """A part's class, imported. Raises PluginError if it cannot be or does not keep its contract; ContractError if
        it was made for another version of that."""
        from dgpo_core.plugins import building

        return building.implementation(registered)

    def check_contract(self, registered: RegisteredPart) -> None:
        """Raise ContractError for a part that was made for another version of the contract.

        Where its plugin declares no version, the class of a kind that has changed is imported to see; one that cannot
        be imported is refused when it is used.
        """
        from dgpo_core.plugins import building

        building.check_contract(registered)

    def create(self, kind: str, block: UseBlock | str, **keywords: Any) -> Any:
        """Import a part's class, validate its options and build it.

        Raises PluginError for what the plugin does wrong and UserError for what its options or files do.
        """
        from dgpo_core.plugins import building

        return building.create(self, kind, block, **keywords)

    def blame(self, error: BaseException) -> str | None:
        """What a plugin has thrown, with its distribution and place; None if it was not a plugin."""
        parts = (part for kind in KINDS for part in self.parts(kind).values())
        paths = {part.part.implementation: f"{part.distribution} {part.version}" for part in parts}
        paths |= {one.command.target: f"{one.distribution} {one.version}" for one in self._commands.values()}
        return blamed(error, {path.partition(":")[0].partition(".")[0]: owner for path, owner in paths.items()})

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


def _declared_contract(plugin: object) -> int | None:
    """The version of the contract that a plugin says it was made for. Raises PluginError if that is no number."""
    declared = getattr(plugin, contract_version.ATTRIBUTE, None)
    if declared is None or (isinstance(declared, int) and not isinstance(declared, bool)):
        return declared
    raise PluginError(
        f"{contract_version.ATTRIBUTE} = {clean(repr(declared), 100)}: it is the version of the contract as a number, "
        f"such as {contract_version.VERSION}"
    )
