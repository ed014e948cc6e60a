"""`dgpo plugins tiny`: write a tiny random checkpoint of a component."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dgpo_core.plugins.declared import RegisteredComponent

__all__ = ["PRESET", "tiny"]

PRESET = "preset.yaml"
"""Name of the preset that is written beside the checkpoint of a backbone."""

tiny = typer.Typer(rich_markup_mode=None, add_completion=False)


@tiny.command(no_args_is_help=True)
def tiny_checkpoint(
    name: Annotated[str, typer.Argument(help="Name of the component, as in `use: NAME`.", metavar="NAME")],
    directory: Annotated[Path, typer.Argument(help="Directory to create.", metavar="DIRECTORY")],
) -> None:
    """Write a tiny random checkpoint of a model, for short runs on a CPU without its published weights.

    Beside the checkpoint of a backbone it writes preset.yaml, with which a run file of the same backbone becomes a run
    of two iterations with this checkpoint.

    Examples:

        dgpo plugins tiny flux tiny-flux

        dgpo plugins tiny pickscore tiny-pickscore

        dgpo train run.yaml --preset tiny-flux/preset.yaml

        dgpo plugins check flux --checkpoint tiny-flux
    """
    from dgpo_core.errors import PluginError, UserError
    from dgpo_core.plugins.isolation import imported, printing_aside, reported
    from dgpo_schemas.text import shell_word

    found = _component(name)
    if directory.exists() or directory.is_symlink():
        raise UserError(f"{directory}: already exists; name another directory")
    make = imported(str(found), found.component.tiny)
    try:
        with printing_aside():
            make(directory)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror or error}") from None
    except Exception as error:
        raise PluginError(f"{found}: {found.component.tiny} failed with {reported(error)}") from error
    typer.echo(f"wrote {directory}/, a random checkpoint of {name}: its output is noise")
    if found.kind == "backbone":
        preset = directory / PRESET
        preset.write_text(_preset(name, directory), encoding="utf-8")
        typer.echo(f"wrote {preset}; with a run file of {name}:")
        typer.echo(f"  dgpo train RUN.yaml --preset {shell_word(str(preset))}")


def _component(name: str) -> RegisteredComponent:
    """Return the component of this name that has a tiny checkpoint. Raises UserError, listing those that have one."""
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_schemas.problems import nearest

    registry = get_registry()
    known = {
        component.component.name: component
        for kind in registry.kinds
        for component in registry.components(kind).values()
        if component.component.tiny
    }
    if name not in known:
        names = ", ".join(sorted(known)) or "none"
        raise UserError(f"NAME {name}: no component with a tiny checkpoint{nearest(name, known)} (possible: {names})")
    return known[name]


def _preset(name: str, directory: Path) -> str:
    """Return the text of the preset."""
    import json

    where = directory.absolute()
    return f"""\
# Settings of a short run with this checkpoint, for a run file with `backbone.use: {name}`:
#   dgpo train RUN.yaml --preset {directory / PRESET}
run:
  name: {json.dumps(where.name)}
  iterations: 2
  device: cpu
backbone:
  checkpoint: {json.dumps(str(where))}
rollout:
  resolution: 64
  groups: 2
  group_size: 4
"""
