"""How commands are found: plugins declare them (`dgpo_commands`), and each is imported when it is called."""

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
    """The commands of `dgpo`, or those of a family such as `dgpo plugins`. Listing them imports none."""

    family = ""
    """What stands before the names of these commands, with a space behind it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a newcomer meets them."""
        return list(self._summaries(_registry()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name, or None. Raises PluginError for one that cannot be imported."""
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
        """Raises PluginError for an unknown command, saying what is near or what to install."""
        registry = _registry()
        if args and not args[0].startswith("-") and args[0] not in self._summaries(registry):
            registry.find_command(self.family + args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Summaries as they are declared, and what may be installed."""
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
        """The words that may follow, of which some are families."""
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
        """What follows the name of the family in that of a command; one empty word if it is of another family."""
        return name.removeprefix(self.family).split(" ") if name.startswith(self.family) else [""]


def _made(target: Any, name: str, registered: RegisteredCommand) -> Any:
    """The command of a function or a Typer application. Raises PluginError for anything else."""
    from dgpo_core.errors import PluginError
    from dgpo_schemas.text import error_text

    what = f"{registered}: {registered.command.target} is no function with Typer's annotations and no Typer application"
    if not callable(target):
        raise PluginError(what)
    try:
        name_values(target)
        application = with_home(target)
        if not isinstance(target, typer.Typer):
            function, application = application, typer.Typer(rich_markup_mode=None, add_completion=False)
            application.command(name)(function)
        return typer.main.get_command(application)
    except Exception as error:  # whatever Typer says of what it does not know
        raise PluginError(f"{what}: {error_text(error)}") from error


def _registry() -> Registry:
    from dgpo_core.plugins.registry import get_registry

    return get_registry()


def _family() -> None:
    """Does nothing by itself."""
