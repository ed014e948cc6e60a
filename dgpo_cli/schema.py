"""`dgpo schema`: JSON Schemas for editors."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dgpo_core.plugins.registry import Registry

__all__ = ["schema", "written"]


def schema(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to write.")] = Path("schemas/json"),
    check: Annotated[bool, typer.Option("--check", help="Compare only; exit code 1 if a file is out of date.")] = False,
) -> None:
    """Write JSON Schemas for editors.

    They cover run files with the installed plugins' options, prompts, logs and checkpoints.

    An editor with YAML support then completes and checks a run file that begins with:

        # yaml-language-server: $schema=schemas/json/run.schema.json

    Examples:

        dgpo schema

        dgpo schema --check
    """
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_schemas.export import stale_schemas, write_schemas

    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; name a directory")
    registry = get_registry()
    models = _sound(registry)
    data = _stale_data(output, registry)
    if check:
        stale = [output / name for name in stale_schemas(output, models)] + list(data)
        for path in stale:
            typer.echo(f"{path} is out of date", err=True)
        if stale:
            typer.echo("run `dgpo schema` to update them", err=True)
            raise typer.Exit(1)
        typer.echo(f"{output} is up to date")
        return
    try:
        changed = [*write_schemas(output, models), *data]
        for path, text in data.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}") from error
    for path in changed:
        typer.echo(str(path))
    typer.echo(f"{len(changed)} {'file' if len(changed) == 1 else 'files'} changed in {output}")


def _stale_data(output: Path, registry: Registry) -> dict[Path, str]:
    """Return the file that lists the plugins' components, with its new text, if it is out of date.

    Empty unless `output` is the schema directory of a checkout of the project."""
    import tomllib

    from dgpo_core.plugins.installable import FILE

    root = FILE.parents[2]
    if output.resolve() != root / "schemas" / "json":
        return {}
    projects = [tomllib.loads(path.read_text(encoding="utf-8")) for path in root.glob("plugins/*/pyproject.toml")]
    text = written(registry, {project["project"]["name"] for project in projects})
    return {} if text == FILE.read_text(encoding="utf-8") else {FILE: text}


def _sound(registry: Registry) -> dict[str, dict[str, type[BaseModel]]]:
    """Return the options models of all components; components whose schema cannot be generated are skipped with a
    warning."""
    from dgpo_core.errors import PluginError
    from dgpo_schemas.export import json_schema
    from dgpo_schemas.text import error_text

    models: dict[str, dict[str, type[BaseModel]]] = {kind: {} for kind in registry.kinds}
    for kind in registry.kinds:
        for name, component in registry.components(kind).items():
            try:
                model = registry.options_model(component)
                json_schema(model)
            except Exception as error:
                text = str(error) if isinstance(error, PluginError) else error_text(error).splitlines()[0]
                typer.echo(f"warning: left out: {kind} {name} of {component.distribution}: {text}", err=True)
            else:
                models[kind][name] = model
    return models


def written(registry: Registry, distributions: Collection[str]) -> str:
    """Return the JSON list of the components of these distributions; entries of uninstalled ones are kept."""
    from dgpo_core.plugins.installable import installable

    sound = set(registry.distributions()) - {broken.distribution for broken in registry.broken}
    kept = {
        (kind, name): owner
        for kind, names in installable().items()
        for name, owner in names.items()
        if owner not in sound or (kind, name) in registry.conflicts()
    }
    found: dict[str, dict[str, str]] = {}
    for (kind, name), owner in sorted((kept | dict(_declared(registry))).items()):
        if owner in distributions:
            found.setdefault(kind, {})[name] = owner
    return json.dumps(found, indent=2) + "\n"


def _declared(registry: Registry) -> Iterator[tuple[tuple[str, str], str]]:
    for kind in registry.kinds:
        yield from (((kind, name), component.distribution) for name, component in registry.components(kind).items())
    yield from ((("command", name), one.distribution) for name, one in registry.commands().items())
    yield from ((("transport", key), one.distribution) for key, one in registry.transports.items())
    for name, distribution in registry.brought.items():
        yield ("kind", name), distribution
        yield ("hook", registry.kinds[name].hook), distribution
