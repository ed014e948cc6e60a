"""`dgpo plugins new`: create a new plugin from a template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dgpo_kit.scaffold import Scaffold

__all__ = ["new"]

new = typer.Typer(rich_markup_mode=None, add_completion=False)


@new.command(no_args_is_help=True)
def new_plugin(
    kind: Annotated[str, typer.Argument(help="Kind of component, such as reward or sampler.", metavar="KIND")],
    name: Annotated[str, typer.Argument(help="Name of the component, as in `use: NAME`.", metavar="NAME")],
    over: Annotated[
        str, typer.Option("--over", help="Base of a backbone: diffusers (with dgpo-diffusers).", metavar="BASE")
    ] = "",
    output: Annotated[Path, typer.Option("--output", help="Directory in which to create dgpo-NAME/.")] = Path(),
) -> None:
    """Create a new plugin: a distribution dgpo-NAME with a small working component, tests and a README.

    KIND is backbone, sampler, reward, weighting, timesteps, objective, prompts, or a kind defined by a plugin.

    Examples:

        dgpo plugins new reward brightness

        dgpo plugins new sampler my-heun --output ../plugins

        dgpo plugins new backbone my-flux --over diffusers
    """
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_kit.scaffold import BASES, Scaffold, check_name, render, write
    from dgpo_schemas.problems import nearest

    found = get_registry().kind(kind, "KIND")
    if over and over not in BASES:
        raise UserError(f"--over {over}: unknown base{nearest(over, BASES)} (bases: {', '.join(BASES)})")
    if over and BASES[over] != kind:
        raise UserError(f"--over {over}: is a base for a {BASES[over]}, not for a {kind}; remove --over")
    check_name(name)
    scaffold = Scaffold(found, name, over)
    if not scaffold.template.is_dir():
        raise UserError(f"KIND {kind}: the plugin that defines this kind has no template for it")
    _check_free(scaffold)
    directory = output / scaffold.distribution
    if directory.exists() or directory.is_symlink():
        raise UserError(f"{directory}: already exists; nothing was written. Choose another NAME or --output")
    if not output.is_dir():
        raise UserError(f"--output {output}: no such directory")
    files = render(scaffold)
    write(files, directory)
    typer.echo(f"wrote {directory}/")
    for path in files:
        typer.echo(f"  {path}")
    typer.echo("next:")
    typer.echo(f"  pip install -e '{directory}[test]'")
    if over:
        typer.echo(f"  dgpo plugins tiny {name} tiny")
    typer.echo(f"  dgpo plugins check {name} --kind {kind}{' --checkpoint tiny' if over else ''}")
    typer.echo(f"  python -m pytest {directory}")


def _check_free(scaffold: Scaffold) -> None:
    """Raise UserError if an installed or bundled component, distribution or package already uses one of the names."""
    import importlib.util

    from dgpo_core.errors import UserError
    from dgpo_core.plugins.installable import installable
    from dgpo_core.plugins.registry import get_registry

    registry, kind, name = get_registry(), scaffold.kind.name, scaffold.name
    bundled = installable()
    owner = (
        registry.components(kind)[name].distribution
        if name in registry.components(kind)
        else bundled.get(kind, {}).get(name)
    )
    owner = owner or " and ".join(registry.conflicts().get((kind, name), []))
    if owner:
        raise UserError(
            f"NAME {name}: {owner} already declares the {kind} {name}, and names must be unique; choose another name, "
            f"such as my-{name}"
        )
    known = {*registry.distributions(), *(owner for names in bundled.values() for owner in names.values())}
    if scaffold.distribution in known or importlib.util.find_spec(scaffold.package) is not None:
        raise UserError(
            f"NAME {name}: {scaffold.distribution} (package {scaffold.package}) already exists; choose another name, "
            f"such as my-{name}"
        )
