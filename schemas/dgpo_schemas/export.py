"""Export of JSON Schemas of all files that users write or read, for editors and other languages.

run.schema.json includes the installed plugins: `use` suggests their names, and `options` are validated by each plugin's
model. Editors with YAML support use it if the first line of a file is, for example,
`# yaml-language-server: $schema=../schemas/json/run.schema.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.base import LONGEST_SIDE, UseBlock
from dgpo_schemas.manifest import CheckpointClock, CheckpointManifest
from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord, PromptScores, TimingRecord
from dgpo_schemas.prompt_keys import KEYS, MOST_MEDIA
from dgpo_schemas.prompts import PromptRecord
from dgpo_schemas.run import RunConfig
from dgpo_schemas.serve import ServeConfig
from dgpo_schemas.service import ServiceMessages
from dgpo_schemas.suites import SuiteRecord

__all__ = ["PluginOptions", "json_schema", "schema_texts", "stale_schemas", "write_schemas"]

PluginOptions = Mapping[str, Mapping[str, type[BaseModel]]]
"""Options models by kind and name of component."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"
RECORDS: dict[str, type[BaseModel]] = {
    "metrics": MetricsRecord,
    "timings": TimingRecord,
    "evaluations": EvaluationRecord,
    "scores": PromptScores,
    "outcome": OutcomeRecord,
    "manifest": CheckpointManifest,
    "clock": CheckpointClock,
    "service": ServiceMessages,
    "suite": SuiteRecord,
}
CHOOSERS = {
    "BackboneSection": "backbone",
    "ObjectiveSection": "objective",
    "PromptsBlock": "prompts",
    "SourceBlock": "prompts",
    "WordingSection": "prompts",
    "RewardBlock": "reward",
    "ServedReward": "reward",
    "TimestepsSection": "timesteps",
}
"""Sections of a run file or reward file that have a `use` key, with the kind of component."""
PLAIN_CHOICES = {("RolloutSection", "sampler"): "sampler", (None, "weighting"): "weighting"}
"""Fields of type `Use`, as (section, field), with the kind of component. None is the top level of the run file."""


LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema(model: type[BaseModel], template: str = "#/$defs/{model}") -> dict[str, Any]:
    """Return a model's JSON Schema.

    pydantic writes the bounds of an optional validated number under its own names (`ge`); they are renamed to those of
    JSON Schema.
    """

    def rename(value: Any) -> Any:
        if isinstance(value, list):
            return [rename(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            LIMITS.get(key, key) if isinstance(inner, int | float) else key: rename(inner)
            for key, inner in value.items()
        }

    renamed: dict[str, Any] = rename(model.model_json_schema(ref_template=template))
    return renamed


def schema_texts(plugins: PluginOptions) -> dict[str, str]:
    """Return the content of each schema file by its path, with `/` as separator. It does not depend on the order of
    `plugins`."""
    schemas = {
        "run.schema.json": _with_plugins(RunConfig, plugins),
        "serve.schema.json": _with_plugins(ServeConfig, plugins),
        "ablation.schema.json": json_schema(AblationConfig),
        "prompt.schema.json": _prompt(),
    }
    schemas |= {f"{name}.schema.json": json_schema(model) for name, model in RECORDS.items()}
    for kind, name, model in _sorted(plugins):
        schemas[f"plugins/{kind}.{name}.schema.json"] = json_schema(model)
    return {name: _text(schema) for name, schema in sorted(schemas.items())}


def write_schemas(directory: Path, plugins: PluginOptions) -> list[Path]:
    """Write all schemas to `directory` and delete obsolete ones. Returns the paths of changed files."""
    changed = []
    expected = schema_texts(plugins)
    for name in stale_schemas(directory, plugins):
        path = directory / name
        if name in expected:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(expected[name], encoding="utf-8")
        else:
            path.unlink()
        changed.append(path)
    return changed


def stale_schemas(directory: Path, plugins: PluginOptions) -> list[str]:
    """Return the names of schemas in `directory` that are missing, outdated or obsolete."""
    expected = schema_texts(plugins)
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*.schema.json")}
    return sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in expected or name not in found or found[name].read_text(encoding="utf-8") != expected[name]
    )


def _text(schema: dict[str, Any]) -> str:
    return json.dumps({"$schema": DIALECT} | schema, indent=2, ensure_ascii=False) + "\n"


def _sorted(plugins: PluginOptions) -> Iterator[tuple[str, str, type[BaseModel]]]:
    for kind in sorted(plugins):
        for name in sorted(plugins[kind]):
            yield kind, name, plugins[kind][name]


def _prompt() -> dict[str, Any]:
    """Return the schema of a line of a .jsonl file: the known keys, and any other keys as metadata."""
    schema = json_schema(PromptRecord)
    keys = {name: schema["properties"][name] for name in KEYS}
    keys["prompt"] |= {"minLength": 1}
    reported = {name: {"description": keys[name]["description"], "default": None} for name in ("media", "size")}
    path, side = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 1, "maximum": LONGEST_SIDE}
    paths = {"type": "array", "items": path, "maxItems": MOST_MEDIA}
    sides = {"type": "array", "items": side, "minItems": 2, "maxItems": 2}
    keys["media"] = reported["media"] | {"anyOf": [path, paths, {"type": "null"}]}
    keys["size"] = reported["size"] | {"anyOf": [side, sides, {"type": "null"}]}
    return schema | {"properties": keys, "additionalProperties": True}


def _with_plugins(model: type[BaseModel], plugins: PluginOptions) -> dict[str, Any]:
    """Return the schema of a file that selects components, with the options of the installed ones."""
    schema = json_schema(model)
    definitions: dict[str, Any] = {"UseBlock": json_schema(UseBlock)} | schema["$defs"]
    for kind, name, model in _sorted(plugins):
        _add_options(definitions, plugins, kind, name, model)
    block = deepcopy(definitions["UseBlock"])
    for kind in sorted(plugins):
        definitions[f"choice.{kind}"] = deepcopy(block)
        _suggest(definitions[f"choice.{kind}"], plugins, kind)
    for section, kind in CHOOSERS.items():
        if section in definitions:
            _suggest(definitions[section], plugins, kind)
    for (owner, field), kind in PLAIN_CHOICES.items():
        properties = (schema if owner is None else definitions.get(owner, {})).get("properties", {})
        if kind in plugins and field in properties:
            properties[field] = _redirect(properties[field], plugins, kind)
    schema.pop("$defs")
    used = _referred(schema, definitions)
    return schema | {"$defs": {name: definitions[name] for name in sorted(used)}}


def _referred(schema: Any, definitions: dict[str, Any]) -> set[str]:
    """Return the names of the definitions that a schema refers to, directly or indirectly."""
    found: set[str] = set()
    pending = [schema]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            name = str(item.get("$ref", "")).removeprefix("#/$defs/")
            if name and name not in found:
                found.add(name)
                pending.append(definitions[name])
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return found


def _add_options(
    definitions: dict[str, Any], plugins: PluginOptions, kind: str, name: str, model: type[BaseModel]
) -> None:
    """Add a component's options as a definition; definitions that they refer to get the same prefix."""
    prefix = f"options.{kind}.{name}"
    options = json_schema(model, f"#/$defs/{prefix}.{{model}}")
    for inner, definition in options.pop("$defs", {}).items():
        definitions[f"{prefix}.{inner}"] = definition
    properties = options.get("properties", {})
    for field in properties.keys() & plugins.keys():
        # By convention, an option named after a kind selects a component of that kind.
        properties[field] = _redirect(properties[field], plugins, field)
    definitions[prefix] = options


def _redirect(schema: Any, plugins: PluginOptions, kind: str) -> Any:
    """Return the schema with every reference to a `use` block, and its short form, limited to a kind's components."""
    if isinstance(schema, list):
        return [_redirect(item, plugins, kind) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if str(schema.get("$ref", "")).endswith("UseBlock"):
        return schema | {"$ref": f"#/$defs/choice.{kind}"}
    if schema.get("type") == "string":
        return schema | {"examples": sorted(plugins[kind])}
    return {key: value if key == "default" else _redirect(value, plugins, kind) for key, value in schema.items()}


def _suggest(section: dict[str, Any], plugins: PluginOptions, kind: str) -> None:
    """Suggest the names of a kind's components, and validate `options` by name. Other names stay valid, since they may
    be installed on another machine."""
    names = sorted(plugins.get(kind, {}))
    if not names:
        return
    use = section["properties"]["use"]
    use["examples"] = names
    section["allOf"] = [
        {
            # If `use` has a default, a section without `use` selects the default.
            "if": {
                "properties": {"use": {"const": name}},
                **({} if use.get("default") == name else {"required": ["use"]}),
            },
            "then": {"properties": {"options": {"$ref": f"#/$defs/options.{kind}.{name}"}}},
        }
        for name in names
    ]
