"""Keys of a model as users read them, with type, range, default and meaning: run files, reward files, options."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from dgpo_schemas.changes import ITEM
from dgpo_schemas.export import json_schema
from dgpo_schemas.problems import field_at

__all__ = ["Key", "keys_of"]

Schema = Mapping[str, Any]
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
SIZES = {"minItems": "at least {}", "maxItems": "at most {}"}
TYPES = {"null": "`null`", "array": "list", "object": "mapping", "boolean": "`true` or `false`"}
COMPONENT = "UseBlock"


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a file.

    name: dotted, with N for the index of a list item. kind: its type and range in words. default: as JSON; None if the
    key is required or stands for a section.
    """

    name: str
    kind: str
    default: str | None
    required: bool
    description: str


def keys_of(model: type[BaseModel], prefix: str = "") -> list[Key]:
    """Return all keys of a model in the order of its fields, sections before the keys in them."""
    schema = json_schema(model)
    return [_with_default(key, model, prefix) for key in _keys(schema, schema.get("$defs", {}), prefix, ())]


def _with_default(key: Key, model: type[BaseModel], prefix: str) -> Key:
    """Fill in a default that a factory makes, which JSON Schemas leave out; sections still have none."""
    if key.required or key.default is not None:
        return key
    path = tuple(0 if part == ITEM else part for part in key.name.removeprefix(prefix).split("."))
    field = field_at(model, path)
    if field is None or field.default_factory is None:
        return key
    try:
        made = field.get_default(call_default_factory=True, validated_data={})
        return key if isinstance(made, BaseModel) else replace(key, default=_json(to_jsonable_python(made)))
    except Exception:  # raised by a factory of a plugin, which may also need other values
        return key


def _keys(schema: Schema, definitions: Schema, prefix: str, path: tuple[str, ...]) -> Iterator[Key]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        dotted = prefix + name
        sections = list(_sections(field, definitions, dotted))
        default = field.get("default")
        shown = None if "default" not in field or (sections and isinstance(default, dict)) else _json(default)
        yield Key(dotted, _kind(field, definitions), shown, name in required, field.get("description", ""))
        for inner, place in sections:
            title = str(inner.get("title"))
            if title not in path:  # a model that contains itself
                yield from _keys(inner, definitions, f"{place}.", (*path, title))


def _sections(field: Schema, definitions: Schema, place: str) -> Iterator[tuple[Schema, str]]:
    """Yield the models that a field, or each item of its list, may be; not components, which have pages."""
    for branch in field.get("anyOf", [field]):
        if "$ref" in branch:
            name = _name(branch)
            if name != COMPONENT and "properties" in definitions[name]:
                yield definitions[name], place
        elif "items" in branch:
            yield from _sections(branch["items"], definitions, f"{place}.N")


def _name(branch: Schema) -> str:
    return str(branch["$ref"]).rpartition("/")[2]


def _kind(field: Schema, definitions: Schema) -> str:
    """Describe the type and range of a value."""
    if "anyOf" in field or "oneOf" in field:
        kinds = dict.fromkeys(_kind(branch, definitions) for branch in field.get("anyOf", field.get("oneOf")))
        return " or ".join(kinds)
    if "$ref" in field:
        name = _name(field)
        if name == COMPONENT:
            return "`use` with `options`"
        return "section" if "properties" in definitions[name] else _kind(definitions[name], definitions)
    if "enum" in field or "const" in field:
        return " or ".join(f"`{_json(value)}`" for value in field.get("enum", [field.get("const")]))
    named = str(field.get("type", "any"))
    kind = TYPES.get(named, named)
    items = f" of {_kind(field['items'], definitions)}" if field.get("items") else ""
    limits = [f"{sign} {_number(field[name])}" for name, sign in LIMITS.items() if name in field]
    sizes = [text.format(field[name]) for name, text in SIZES.items() if name in field]
    pattern = [f"matching `{field['pattern']}`"] if "pattern" in field else []
    return ", ".join([kind + items, *limits, *sizes, *pattern])


def _number(value: float) -> str:
    """Write small integers in full, others with an exponent."""
    return (
        f"{int(value)}"
        if value == int(value) and abs(value) < 1e6
        else f"{value:.3g}".replace("e+0", "e").replace("e+", "e")
    )


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
