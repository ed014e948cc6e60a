"""`dgpo plugins new`: a distribution to start from, that already works."""

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
    name: Annotated[str, typer.Argument(help="What a run file will write after `use`.", metavar="NAME")],
    over: Annotated[
        str, typer.Option("--over", help="What a backbone stands on: diffusers, by dgpo-diffusers.", metavar="BASE")
    ] = "",
    output: Annotated[Path, typer.Option("--output", help="Directory in which dgpo-NAME/ is made.")] = Path(),
) -> None:
    """Write a new plugin: a distribution dgpo-NAME with a small working component, its tests and a README.

    KIND is one of backbone, sampler, reward, weighting, timesteps, objective, prompts, or one that a plugin brings.

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
        raise UserError(f"--over {over}: there is no such base{nearest(over, BASES)} (bases: {', '.join(BASES)})")
    if over and BASES[over] != kind:
        raise UserError(f"--over {over}: a {kind} does not stand on it, only a {BASES[over]} does; leave --over out")
    check_name(name)
    scaffold = Scaffold(found, name, over)
    if not scaffold.template.is_dir():
        raise UserError(f"KIND {kind}: whoever brings it has no template of one")
    _check_free(scaffold)
    directory = output / scaffold.distribution
    if directory.exists() or directory.is_symlink():
        raise UserError(f"{directory}: exists already; nothing was written. Choose another NAME or --output")
    if not output.is_dir():
        raise UserError(f"--output {output}: there is no such directory")
    files = render(scaffold)
    write(files, directory)
    typer.echo(f"wrote {directory}/")
    for path in files:
        typer.echo(f"  {path}")
    typer.echo("next:")
    typer.echo(f"  pip install -e '{directory}[test]'")
    if over:
        typer.echo(f"  python -m {scaffold.package}.testing tiny")
    typer.echo(f"  dgpo plugins check {name} --kind {kind}{' --checkpoint tiny' if over else ''}")
    typer.echo(f"  python -m pytest {directory}")


def _check_free(scaffold: Scaffold) -> None:
    """Raise UserError if an installed or bundled component, distribution or package has one of the names already."""
    import importlib.util

    from dgpo_core.errors import UserError
    from dgpo_core.plugins.installable import installable
    from dgpo_core.plugins.registry import get_registry

    registry, kind, name = get_registry(), scaffold.kind.name, scaffold.name
    ours = installable()
    owner = (
        registry.components(kind)[name].distribution
        if name in registry.components(kind)
        else ours.get(kind, {}).get(name)
    )
    owner = owner or " and ".join(registry.conflicts().get((kind, name), []))
    if owner:
        raise UserError(
            f"NAME {name}: {owner} declares the {kind} {name} already, and one of two with the same name could not be "
            f"used; choose another, such as my-{name}"
        )
    known = {*registry.distributions(), *(one for names in ours.values() for one in names.values())}
    if scaffold.distribution in known or importlib.util.find_spec(scaffold.package) is not None:
        raise UserError(
            f"NAME {name}: {scaffold.distribution} (package {scaffold.package}) exists already; choose another, such "
            f"as my-{name}"
        )
