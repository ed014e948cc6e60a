"""Look up declared components, commands, kinds and transports by name."""

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
UNLIKE_ANY = (
    ": no installed plugin declares it (`dgpo plugins list` shows all); if you have just created it: "
    "pip install -e DIRECTORY"
)


class Names:
    """Tables of declared names. A name that several distributions declare is unusable."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = dict(KINDS)
        self.brought: dict[str, str] = {}  # kind defined by a plugin -> its distribution
        self.broken: list[BrokenPlugin] = []
        self._versions: dict[str, str] = {}
        self._components: dict[str, dict[str, RegisteredComponent]] = {}
        self._commands: dict[str, RegisteredCommand] = {}
        self.transports: dict[str, RegisteredTransport] = {}
        self._claimed_twice: dict[tuple[str, str], list[str]] = {}

    def components(self, kind: str) -> Mapping[str, RegisteredComponent]:
        """Return all usable components of a kind, by name."""
        return dict(sorted(self._components.get(kind, {}).items()))

    def commands(self) -> Mapping[str, RegisteredCommand]:
        """Return all usable commands by name, in the order of `dgpo --help`."""
        return dict(sorted(self._commands.items(), key=lambda item: (" " in item[0], item[1].command.order, item[0])))

    def conflicts(self) -> Mapping[tuple[str, str], list[str]]:
        """Map (kind or "command", name) to the distributions, where several declare the same name."""
        return dict(self._claimed_twice)

    def distributions(self) -> dict[str, str]:
        """Return every distribution with plugins and its version."""
        return dict(sorted(self._versions.items()))

    def find(self, kind: str, name: str) -> RegisteredComponent:
        """Return a component by name.

        Raises PluginError for an unknown name, listing the known names, the nearest one and what to install, and if the
        component declares another contract version.
        """
        known = self._components.get(kind, {})
        found = known.get(name)
        if found is None:
            noun = self.kinds[kind].noun or kind if kind in self.kinds else kind
            self._refuse(kind, name, noun, f"unknown {noun} {name!r}", known, "installed")
        check_declared(found)
        return found

    def named(self, name: str, kind: str | None = None) -> list[RegisteredComponent]:
        """Return all components of a name, of one kind or of any. Raises PluginError as `find` does if none exists."""
        kinds = self.kinds if kind is None else (kind,)
        found = [known[name] for k in kinds if name in (known := self.components(k))]
        if found:
            return found
        candidates = dict.fromkeys(
            [*kinds, *([] if kind else sorted(installable().keys() - NO_COMPONENTS))]
        )  # installed ones first
        claimed = [k for k in candidates if (k, name) in self._claimed_twice or how_to_install(k, name)]
        if kind is not None or claimed:
            self.find(claimed[0] if claimed else str(kind), name)
        from dgpo_schemas.problems import nearest

        what, others = f"unknown component {name!r}", {other for k in kinds for other in self.components(k)}
        self._refuse("", name, "component", what, others, more=SHOWN if nearest(name, others) else UNLIKE_ANY)

    def kind(self, name: str, where: str) -> Kind:
        """Return a kind by name. Raises UserError with `where`, such as "--kind", if it is unknown."""
        if name in self.kinds:
            return self.kinds[name]
        from dgpo_schemas.problems import nearest

        near = ((how := how_to_install("kind", name)) and f"; {how}") or nearest(name, self.kinds)
        raise UserError(f"{where} {name}: unknown kind{near} (kinds: {', '.join(self.kinds)})")

    def find_command(self, name: str) -> RegisteredCommand:
        """Return a command by name. Raises PluginError with the nearest name and what to install if it is unknown."""
        if name not in self._commands:
            self._refuse("command", name, "command", f"unknown command {name!r}", self._commands)
        return self._commands[name]

    def _add_component(self, component: RegisteredComponent) -> None:
        self._add(component.kind, component.component.name, self._components.setdefault(component.kind, {}), component)

    def _add_transport(self, transport: RegisteredTransport) -> None:
        self._add("transport", transport.key, self.transports, transport)

    def _add_command(self, command: RegisteredCommand) -> None:
        self._add("command", command.command.name, self._commands, command)
        self._refuse_below_commands()

    def _add(self, kind: str, name: str, known: dict[str, R], registered: R) -> None:
        """Add to the table of a kind; remove the name from the table if others declare it too."""
        if name in known or (kind, name) in self._claimed_twice:
            claims = self._claimed_twice.setdefault((kind, name), [])
            earlier = known.pop(name, None)
            claims.extend([earlier.distribution] if earlier else [])
            claims.append(registered.distribution)
        else:
            known[name] = registered

    def _refuse_below_commands(self) -> None:
        """Remove subcommands of commands that are not groups: `train fast` is ambiguous if `train` takes arguments."""
        for name, registered in list(self._commands.items()):
            parent = self._commands.get(name.partition(" ")[0])
            if parent is not None and parent is not registered and parent.command.target:
                del self._commands[name]
                self._claimed_twice["command", name] = [parent.distribution, registered.distribution]

    def find_transport(self, key: str) -> RegisteredTransport:
        """Return the transport for this key of a reward's section. Raises PluginError with what to install."""
        if key not in self.transports:
            what = f"rewards with `{key}` require a plugin that is not installed"
            self._refuse("transport", key, "transport", what, ())
        return self.transports[key]

    def _refuse(
        self, kind: str, name: str, noun: str, what: str, known: Collection[str], listed: str = "", more: str = ""
    ) -> NoReturn:
        """Raise PluginError for an unknown or ambiguous name."""
        if owners := self._claimed_twice.get((kind, name)):
            raise PluginError(f"{noun} {name!r} is claimed by {' and '.join(sorted(owners))}: uninstall one of them")
        if how := how_to_install(kind, name):
            what += f"; {how}"
        else:
            from dgpo_schemas.problems import nearest

            near = nearest(name, {*known, *(brought := installable().get(kind, {}))})
            suggestion = near.removeprefix("; did you mean ").removesuffix("?")
            if suggestion in brought and suggestion not in known and (how := how_to_install(kind, suggestion)):
                near += f" {how}"
            what += near + (f" ({listed}: {', '.join(sorted(known)) or 'none'})" if listed else more)
        lines = [what, *(f"a plugin that failed to load may provide it: {broken}" for broken in self.broken)]
        raise PluginError("\n  ".join(lines))
