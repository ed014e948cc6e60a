"""What is declared, by name: which distribution has a name, and what is said of one that nobody has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NoReturn, TypeVar

from dgpo_core.errors import PluginError, UserError
from dgpo_core.hookspecs import KINDS, Kind
from dgpo_core.plugins.declared import (
    BrokenPlugin,
    RegisteredCommand,
    RegisteredComponent,
    RegisteredTransport,
    check_declared,
)
from dgpo_core.plugins.installable import NO_COMPONENTS, how_to_install, installable

__all__ = ["Names"]

R = TypeVar("R", RegisteredComponent, RegisteredCommand, RegisteredTransport)
SHOWN = " (`dgpo plugins list` shows all)"


class Names:
    """Components by kind, and commands. A name that two claim is nobody's."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = dict(KINDS)
        self.brought: dict[str, str] = {}  # kind of a plugin to its distribution
        self.broken: list[BrokenPlugin] = []
        self._versions: dict[str, str] = {}
        self._components: dict[str, dict[str, RegisteredComponent]] = {}
        self._commands: dict[str, RegisteredCommand] = {}
        self.places: dict[str, RegisteredTransport] = {}
        self._claimed_twice: dict[tuple[str, str], list[str]] = {}

    def components(self, kind: str) -> Mapping[str, RegisteredComponent]:
        """All usable parts of a kind, by name."""
        return dict(sorted(self._components.get(kind, {}).items()))

    def commands(self) -> Mapping[str, RegisteredCommand]:
        """All usable commands by name, in the order in which they are listed."""
        return dict(sorted(self._commands.items(), key=lambda item: (" " in item[0], item[1].command.order, item[0])))

    def conflicts(self) -> Mapping[tuple[str, str], list[str]]:
        """(kind or "command", name) claimed by several distributions, and which."""
        return dict(self._claimed_twice)

    def distributions(self) -> dict[str, str]:
        """Every distribution with plugins, and its version."""
        return dict(sorted(self._versions.items()))

    def find(self, kind: str, name: str) -> RegisteredComponent:
        """A component by name. Raises PluginError saying what there is, what is near, and what to install, or that the
        component says it was made for another version of the contract."""
        known = self._components.get(kind, {})
        found = known.get(name)
        if found is None:
            noun = self.kinds[kind].noun or kind if kind in self.kinds else kind
            self._refuse(kind, name, noun, f"unknown {noun} {name!r}", known, "installed")
        check_declared(found)
        return found

    def named(self, name: str, kind: str | None = None) -> list[RegisteredComponent]:
        """Every part of a name, of one kind or of all. Raises PluginError, as `find` does, if there is none."""
        kinds = self.kinds if kind is None else (kind,)
        found = [known[name] for one in kinds if name in (known := self.components(one))]
        if found:
            return found
        asked = dict.fromkeys(
            [*kinds, *([] if kind else sorted(installable().keys() - NO_COMPONENTS))]
        )  # installed ones first
        claimed = [one for one in asked if (one, name) in self._claimed_twice or how_to_install(one, name)]
        if kind is not None or claimed:
            self.find(claimed[0] if claimed else str(kind), name)
        what = f"no component is called {name!r}"
        self._refuse(
            "", name, "component", what, {other for one in kinds for other in self.components(one)}, more=SHOWN
        )

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

    def _add_component(self, component: RegisteredComponent) -> None:
        self._add(component.kind, component.component.name, self._components.setdefault(component.kind, {}), component)

    def _add_transport(self, place: RegisteredTransport) -> None:
        self._add("place", place.key, self.places, place)

    def _add_command(self, command: RegisteredCommand) -> None:
        self._add("command", command.command.name, self._commands, command)
        self._refuse_below_commands()

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

    def find_transport(self, key: str) -> RegisteredTransport:
        """Where a reward runs whose block has this key. Raises PluginError, saying what to install."""
        if key not in self.places:
            self._refuse("place", key, "place", f"rewards with `{key}` need a plugin that is not installed", ())
        return self.places[key]

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

            near = nearest(name, {*known, *(brought := installable().get(kind, {}))})
            meant = near.removeprefix("; did you mean ").removesuffix("?")
            if meant in brought and meant not in known and (how := how_to_install(kind, meant)):
                near += f" {how}"
            what += near + (f" ({listed}: {', '.join(sorted(known)) or 'none'})" if listed else more)
        lines = [what, *(f"a plugin could not be loaded and may own it: {broken}" for broken in self.broken)]
        raise PluginError("\n  ".join(lines))
