"""Command lookup: plugins declare commands (`dgpo_commands`), and each is imported when it is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from dgpo_cli.metavars import name_values
from dgpo_cli.paths import with_home

if TYPE_CHECKING:
    from dgpo_core.plugins.declared import RegisteredCommand
    from dgpo_core.plugins.registry import Registry

__all__ = ["Commands"]


class Commands(TyperGroup):
    """The commands of `dgpo`, or of a command group such as `dgpo plugins`. Listing them imports none."""

    family = ""
    """Prefix of the names of these commands, with a trailing space."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order in which they are declared."""
        return list(self._summaries(_registry()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by name, or None. Raises PluginError if it cannot be imported."""
        from dgpo_core.plugins.isolation import imported

        registry = _registry()
        registered = registry.commands().get(self.family + cmd_name)
        if registered is not None and registered.command.target:
            command = _made(imported(str(registered), registered.command.target), cmd_name, registered)
        elif summary := self._summaries(registry).get(cmd_name):
            command = typer.main.get_command(
                typer.Typer(
                    cls=Commands, help=summary, callback=_family, no_args_is_help=True, rich_markup_mode=None,
                    add_completion=False,
                )
            )  # fmt: skip
            command.family = f"{self.family}{cmd_name} "  # type: ignore[attr-defined]
        else:
            return None
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Raise PluginError for an unknown command, with the nearest name or the package to install."""
        registry = _registry()
        if args and not args[0].startswith("-") and args[0] not in self._summaries(registry):
            registry.find_command(self.family + args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the declared summaries, and commands that could be installed."""
        registry = _registry()
        for title, rows in (
            ("Commands", list(self._summaries(registry).items())),
            ("Not installed", list(self._not_installed(registry))),
            ("Unusable", list(self._claimed_twice(registry))),
        ):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _summaries(self, registry: Registry) -> dict[str, str]:
        """Return the summaries of the commands and command groups, by name."""
        found: dict[str, str] = {}
        for name, one in registry.commands().items():
            word, *more = self._words(name)
            if more:
                found.setdefault(word, f"Commands of {one.distribution}.")
            elif word:
                found[word] = one.command.summary
        return found

    def _not_installed(self, registry: Registry) -> Iterator[tuple[str, str]]:
        from dgpo_core.plugins.installable import installable, pip_install

        for name, distribution in installable().get("command", {}).items():
            word, *more = self._words(name)
            if word and not more and name not in registry.commands() and ("command", name) not in registry.conflicts():
                yield word, pip_install(distribution)

    def _claimed_twice(self, registry: Registry) -> Iterator[tuple[str, str]]:
        for (kind, name), owners in registry.conflicts().items():
            word, *more = self._words(name)
            if kind == "command" and word and not more:
                yield word, f"{' and '.join(sorted(owners))} claim it: uninstall one of them"

    def _words(self, name: str) -> list[str]:
        """Split a command's name after the prefix of this group; one empty word if it belongs to another group."""
        return name.removeprefix(self.family).split(" ") if name.startswith(self.family) else [""]


def _made(target: Any, name: str, registered: RegisteredCommand) -> Any:
    """Build the command of a function or a Typer application. Raises PluginError for anything else."""
    from dgpo_core.errors import PluginError
    from dgpo_schemas.text import error_text

    what = f"{registered}: {registered.command.target} is neither a function with Typer's annotations nor a Typer app"
    if not callable(target):
        raise PluginError(what)
    try:
        name_values(target)
        application = with_home(target)
        if not isinstance(target, typer.Typer):
            function, application = application, typer.Typer(rich_markup_mode=None, add_completion=False)
            application.command(name)(function)
        return typer.main.get_command(application)
    except Exception as error:  # Typer raises various exceptions for unsupported annotations
        raise PluginError(f"{what}: {error_text(error)}") from error


def _registry() -> Registry:
    from dgpo_core.plugins.registry import get_registry

    return get_registry()


def _family() -> None:
    """Do nothing; the subcommands do the work."""
