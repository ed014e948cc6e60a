"""JSON Schemas, judged by a small validator of their own: what they accept is what the models accept."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from dgpo_schemas.base import Int, Options, Use
from dgpo_schemas.export import schema_texts, stale_schemas, write_schemas
from dgpo_schemas.run import RunConfig


class Inner(Options):
    """Something nested."""

    depth: Int = Field(default=1, ge=1, description="Depth.")


class Reward(Options):
    """Options of a reward."""

    mode: Literal["a", "b"] = Field(default="a", description="Mode.")
    inner: Inner = Field(default_factory=Inner, description="Inner.")
    detector: Use | None = Field(default=None, description="Detector.")


class Detector(Options):
    """Options of a detector."""

    threshold: Int = Field(default=0, ge=0, description="Threshold.")


class Order(Options):
    """Options of a sampler, a weighting or an objective."""

    order: Int = Field(default=2, ge=1, description="Order.")


PLUGINS: dict[str, dict[str, type[BaseModel]]] = {
    "reward": {"shiny": Reward, "plain": Options},
    "detector": {"eye": Detector},
    "sampler": {"solver": Order, "flow-dpmpp": Options},
    "weighting": {"heavy": Order},
    "objective": {"dgpo": Options, "other": Order},
}


def fits(schema: Any, value: Any, root: Any) -> bool:
    """Whether a value satisfies a JSON Schema, for the keywords that occur here."""
    if schema is True:
        return True
    if "$ref" in schema and not fits(root["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, root):
        return False
    types: dict[str, Any] = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "integer": int, "number": (int, float),
    }  # fmt: skip
    if "type" in schema:
        if isinstance(value, bool) and schema["type"] != "boolean":
            return False
        if not isinstance(value, types[schema["type"]]):
            return False
    checks = [
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        "anyOf" not in schema or any(fits(branch, value, root) for branch in schema["anyOf"]),
        all(fits(branch, value, root) for branch in schema.get("allOf", [])),
    ]
    if "if" in schema and fits(schema["if"], value, root):
        checks.append(fits(schema["then"], value, root))
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        checks.append(set(schema.get("required", [])) <= value.keys())
        checks += [fits(properties[key], inner, root) for key, inner in value.items() if key in properties]
        others = schema.get("additionalProperties", True)
        rest = [inner for key, inner in value.items() if key not in properties]
        checks.append(all(others is not False and fits(others, inner, root) for inner in rest))
    if isinstance(value, list):
        checks += [fits(schema.get("items", True), inner, root) for inner in value]
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)))
    if isinstance(value, str):
        checks += [bool(re.search(schema.get("pattern", ""), value)), len(value) >= schema.get("minLength", 0)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        checks += [
            value >= schema.get("minimum", value), value <= schema.get("maximum", value),
            "exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"],
            "exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"],
        ]  # fmt: skip
    return all(checks)


GOOD = {
    "run": {"name": "r", "iterations": 2},
    "backbone": {"use": "toy", "checkpoint": "toy"},
    "prompts": {"train": "p.jsonl", "heldout": {"use": "toy", "limit": 3}},
    "rewards": [{"use": "shiny", "options": {"mode": "b", "inner": {"depth": 2}, "detector": "eye"}}],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set."""
    data: Any = deepcopy(GOOD)
    *parents, last = [int(component) if component.isdigit() else component for component in path.split(".")]
    here = data
    for component in parents:
        here = here.setdefault(component, {}) if isinstance(here, dict) else here[component]
    here[last] = value
    return dict(data)


@pytest.fixture(scope="module")
def run_schema() -> Any:
    """run.schema.json."""
    return json.loads(schema_texts(PLUGINS)["run.schema.json"])


@pytest.mark.parametrize(
    ("path", "value", "both"),
    [
        ("run.name", "ok", True), ("run.name", "no no", False), ("run.iterations", 0, False), ("run.nme", "x", False),
        ("run.iterations", True, False),
        ("backbone.dtype", "bfloat16", True), ("backbone.dtype", "fp8", False), ("backbone.lora", {"rank": 0}, False),
        ("backbone.lora.targets", ["q"], True), ("backbone.lora.targets", [], False),
        ("rollout.sampler", "solver", True), ("rollout.sampler", {"use": "solver"}, True),
        ("rollout.sampler", 3, False), ("rollout.sampler", "", False), ("rollout.sampler", {"uses": "x"}, False),
        ("rollout.resolution", 64, True), ("rollout.resolution", [64, 96], True), ("rollout.resolution", [64], False),
        ("timesteps.t_min", "shift(0.3)", True), ("timesteps.t_min", 0.2, True), ("timesteps.t_min", 2, False),
        ("timesteps.t_min", "early", False), ("timesteps.t_max", True, False),
        ("optimizer.betas", [0.9, 0.99], True), ("optimizer.betas", [0.9, 1.0], False),
        ("objective.clip", None, True), ("objective.clip", 1, False), ("objective.beta", 0, False),
        ("rewards", [], False), ("prompts.train", {"file": "a.txt"}, True), ("prompts.train", "", False),
        ("prompts.heldout", None, True), ("learning_rate", 1, False), ("logging.trackers", ["wandb"], True),
        ("logging.trackers", ["paper"], False),
    ],
)  # fmt: skip
def test_the_schema_agrees_with_the_model(run_schema: Any, path: str, value: Any, both: bool) -> None:
    data = changed(path, value)
    try:
        RunConfig.model_validate(data)
        accepted = True
    except ValidationError:
        accepted = False
    # An empty file name is the one thing that only the schema refuses.
    assert accepted == both or (path, value) == ("prompts.train", "")
    assert fits(run_schema, data, run_schema) == both


@pytest.mark.parametrize(
    ("path", "value", "accepted"),
    [
        ("rewards.0.options.mode", "c", False),
        ("rewards.0.options.inner.depth", 0, False),
        ("rewards.0.options.color", 1, False),
        ("rewards.0", {"use": "stranger", "options": {"color": 1}}, True),  # installed elsewhere, perhaps
        ("rewards.0.options.detector", {"use": "eye", "options": {"threshold": 3}}, True),
        ("rewards.0.options.detector", {"use": "eye", "options": {"threshold": -3}}, False),
        ("rewards.0.options.detector", {"use": "ear", "options": {"threshold": -3}}, True),
        ("rollout.sampler", {"use": "solver", "options": {"order": 3}}, True),
        ("rollout.sampler", {"use": "solver", "options": {"order": 0}}, False),
        ("weighting", {"use": "heavy", "options": {"order": 0}}, False),
        ("weighting", "heavy", True),
        ("objective", {"options": {"order": 1}}, False),  # the default, dgpo, has no options
        ("objective", {"use": "other", "options": {"order": 1}}, True),
        ("evaluation.rewards", [{"use": "shiny", "options": {"mode": "c"}}], False),
    ],
)
def test_options_are_checked_by_the_component_that_is_used(
    run_schema: Any, path: str, value: Any, accepted: bool
) -> None:
    assert fits(run_schema, changed(path, value), run_schema) == accepted


def test_known_names_are_suggested(run_schema: Any) -> None:
    assert run_schema["$defs"]["RewardBlock"]["properties"]["use"]["examples"] == ["plain", "shiny"]
    assert run_schema["$defs"]["choice.sampler"]["properties"]["use"]["examples"] == ["flow-dpmpp", "solver"]


def test_everything_is_described(run_schema: Any) -> None:
    for name, definition in {"run": run_schema, **run_schema["$defs"]}.items():
        assert definition.get("description"), name
        for key, schema in definition.get("properties", {}).items():
            assert schema.get("description"), f"{name}.{key}"


def test_no_reference_leads_nowhere_and_no_definition_is_idle(run_schema: Any) -> None:
    referred = set(re.findall(r'"#/\$defs/([^"]+)"', json.dumps(run_schema)))
    assert referred == run_schema["$defs"].keys()


def test_the_text_does_not_depend_on_the_order_of_plugins() -> None:
    reverse = {kind: dict(reversed(models.items())) for kind, models in reversed(PLUGINS.items())}
    assert schema_texts(PLUGINS) == schema_texts(reverse)


def test_one_file_per_model() -> None:
    assert set(schema_texts({"reward": {"shiny": Reward}})) == {
        "run.schema.json", "prompt.schema.json", "manifest.schema.json", "clock.schema.json", "metrics.schema.json",
        "suite.schema.json",
        "timings.schema.json",
        "evaluations.schema.json", "scores.schema.json", "outcome.schema.json", "ablation.schema.json",
        "serve.schema.json", "service.schema.json", "plugins/reward.shiny.schema.json",
    }  # fmt: skip


def test_a_prompt_may_carry_anything() -> None:
    schema = json.loads(schema_texts({})["prompt.schema.json"])
    assert fits(schema, {"prompt": "a", "tag": "x", "include": []}, schema)
    assert not fits(schema, {"tag": "x"}, schema)
    assert not fits(schema, {"prompt": ""}, schema)


def test_writing_changes_only_what_is_stale(tmp_path: Path) -> None:
    assert len(write_schemas(tmp_path, PLUGINS)) == len(schema_texts(PLUGINS))
    assert stale_schemas(tmp_path, PLUGINS) == []
    assert write_schemas(tmp_path, PLUGINS) == []
    (tmp_path / "run.schema.json").write_text("{}")
    (tmp_path / "prompt.schema.json").unlink()
    (tmp_path / "plugins/reward.gone.schema.json").write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    stale = ["plugins/reward.gone.schema.json", "prompt.schema.json", "run.schema.json"]
    assert stale_schemas(tmp_path, PLUGINS) == stale
    assert write_schemas(tmp_path, PLUGINS) == [tmp_path / name for name in stale]
    assert stale_schemas(tmp_path, PLUGINS) == []
    assert (tmp_path / "README.md").exists()
    assert not (tmp_path / "plugins/reward.gone.schema.json").exists()
