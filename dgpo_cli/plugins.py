"""`dgpo plugins list` and `show`: installed components and their options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

    from dgpo_core.plugins.declared import RegisteredComponent
    from dgpo_core.plugins.registry import Registry

__all__ = ["list_components", "show"]

show = typer.Typer(rich_markup_mode=None, add_completion=False)
Kind = Annotated[str | None, typer.Option("--kind", help="Only components of this kind, such as reward or sampler.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_components(kind: Kind = None, as_json: AsJson = False) -> None:
    """List every component that a run file may use, and plugins that could not be loaded.

    Examples:

        dgpo plugins list

        dgpo plugins list --kind reward --json
    """
    from dgpo_core.plugins.registry import get_registry
    from dgpo_schemas.text import clean

    registry = get_registry()
    kinds = registry.kinds if kind is None else [registry.kind(kind, "--kind").name]
    found = [component for one in kinds for component in registry.components(one).values()]
    refused = dict(_refused(registry, found))
    if as_json:
        _print_json(registry, found, refused=refused)
        return
    rows = [(p.kind, p.component.name, f"{p.distribution} {p.version}", clean(p.component.summary)) for p in found]
    for line in _aligned([("kind", "name", "from", "summary"), *rows], _terminal_width()):
        typer.echo(line)
    for (component_kind, name), owners in registry.conflicts().items():
        claims = " and ".join(sorted(owners))
        typer.echo(f"unusable: {component_kind} {name} is claimed by {claims}: uninstall one of them", err=True)
    for reason in refused.values():
        typer.echo(f"unusable: {reason}", err=True)
    for broken in registry.broken:
        typer.echo(f"broken: {broken}", err=True)


@show.command(no_args_is_help=True)
def show_component(
    name: Annotated[str, typer.Argument(help="Name of a component, as in `use: NAME`.", metavar="NAME")],
    kind: Kind = None,
    as_json: AsJson = False,
) -> None:
    """Show what a component is, where it comes from, and its options.

    Examples:

        dgpo plugins show geneval

        dgpo plugins show uniform --kind timesteps
    """
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    found = registry.named(name, registry.kind(kind, "--kind").name if kind is not None else None)
    for component in found:
        registry.check_contract(component)
    if as_json:
        _print_json(registry, found, options=True)
        return
    for i, component in enumerate(found):
        if i:
            typer.echo()
        for line in _description(registry, component):
            typer.echo(line)


def _refused(registry: Registry, found: Sequence[RegisteredComponent]) -> Iterator[tuple[RegisteredComponent, str]]:
    """Yield components made for another version of the contract, with the error message."""
    from dgpo_core.errors import ContractError

    for component in found:
        try:
            registry.check_contract(component)
        except ContractError as error:
            yield component, str(error)


def _schema(registry: Registry, component: RegisteredComponent) -> dict[str, Any]:
    """Return the JSON Schema of a component's options. Raises PluginError if it cannot be generated."""
    from dgpo_core.errors import PluginError
    from dgpo_schemas.export import json_schema
    from dgpo_schemas.text import error_text

    model = registry.options_model(component)
    try:
        return json_schema(model)
    except Exception as error:
        what = f"{component.kind} {component.component.name} of {component.distribution} {component.version}"
        raise PluginError(
            f"{what}: cannot generate a JSON Schema of its options: {error_text(error).splitlines()[0]}"
        ) from error


def _description(registry: Registry, component: RegisteredComponent) -> Iterator[str]:
    from dgpo_schemas.text import clean

    model = registry.options_model(component)
    schema = _schema(registry, component)
    yield f"{component.component.name} ({component.kind})"
    yield from _wrapped(clean(component.component.summary), "  ")
    yield f"  from {component.distribution} {component.version}, {component.component.implementation}"
    if not schema.get("properties"):
        yield "  no options"
        return
    yield "  options:"
    for name, field in schema["properties"].items():
        default = "required" if name in schema.get("required", []) else f"default {_default(model, name)}"
        yield from _wrapped(f"{name}: {_type(field, schema.get('$defs', {}))}, {default}", "    ")
        if field.get("description"):
            yield from _wrapped(field["description"], "        ")


def _default(model: type[BaseModel], name: str) -> str:
    """Return an option's default as JSON; a JSON Schema omits the defaults of factories."""
    from pydantic_core import to_jsonable_python

    from dgpo_schemas.text import error_text

    field = next(field for known, field in model.model_fields.items() if name in (known, field.alias))
    try:
        return _value(to_jsonable_python(field.get_default(call_default_factory=True), fallback=str))
    except Exception as error:  # raised by a factory of the plugin
        return f"(not available: {error_text(error)})"


def _value(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


_TYPES = {
    "integer": "integer",
    "number": "number",
    "string": "string",
    "boolean": "true or false",
    "array": "list",
    "object": "section",
    "null": "null",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def _type(field: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Describe the type of a JSON Schema field in words."""
    if "anyOf" in field:
        if any("UseBlock" in branch.get("$ref", "") for branch in field["anyOf"]):
            return "a component's name, or `use` with `options`"
        return " or ".join(dict.fromkeys(_type(branch, definitions) for branch in field["anyOf"]))
    if "$ref" in field:
        return _type(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "enum" in field:
        return "one of " + ", ".join(map(str, field["enum"]))
    if "const" in field:
        return _value(field["const"])
    words = _TYPES.get(str(field.get("type")), "any value")
    if field.get("type") == "array" and isinstance(field.get("items"), dict):
        words += f" of ({_type(field['items'], definitions)})"
    bounds = [f"{_BOUNDS[key]} {field[key]:g}" for key in _BOUNDS if key in field]
    return words + (f" {' and '.join(bounds)}" if bounds else "")


def _wrapped(text: str, indent: str) -> list[str]:
    """Wrap a text to the terminal, or to 80 columns without one; continuation lines are indented by four more."""
    import textwrap

    more = indent if len(indent) > 4 else indent + "    "
    width = max(_terminal_width() or 80, 40)
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=more, break_long_words=False, break_on_hyphens=False
    )


def _terminal_width() -> int | None:
    """Return the width of the terminal; None for a file or a pipe, where each component stays on one line."""
    import shutil
    import sys

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _aligned(rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """Format rows in aligned columns; the last column is wrapped to the remaining width."""
    import textwrap

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    left = sum(widths) + 2 * len(widths)
    room = max(width - left, 20) if width else None
    for *cells, last in rows:
        lines = textwrap.wrap(last, room) if room else [last]
        start = "".join(cell.ljust(cell_width) + "  " for cell, cell_width in zip(cells, widths, strict=True))
        yield start + lines[0]
        yield from (" " * left + line for line in lines[1:])


def _print_json(
    registry: Registry,
    found: Sequence[RegisteredComponent],
    *,
    options: bool = False,
    refused: Mapping[RegisteredComponent, str] | None = None,
) -> None:
    import json

    components = [
        {
            "kind": component.kind,
            "name": component.component.name,
            "summary": component.component.summary,
            "distribution": component.distribution,
            "version": component.version,
            "implementation": component.component.implementation,
            **({"options": _schema(registry, component)} if options else {}),
        }
        for component in found
    ]
    record: dict[str, Any] = {"components": components}
    if not options:
        record["conflicts"] = [
            {"kind": kind, "name": name, "distributions": owners}
            for (kind, name), owners in registry.conflicts().items()
        ]
        record["refused"] = [
            {
                "kind": component.kind,
                "name": component.component.name,
                "distribution": component.distribution,
                "reason": reason,
            }
            for component, reason in (refused or {}).items()
        ]
        record["broken"] = [
            {"distribution": b.distribution, "entry_point": b.entry_point, "reason": b.reason} for b in registry.broken
        ]
    typer.echo(json.dumps(record, indent=1))
