"""Run files as a whole: plugins and their options are checked with the rest, and everything has a line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from dgpo_core.config.changes import differing_keys
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.hookspecs import Component, Kind, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.base import Int, Options, Use
from dgpo_schemas.problems import ConfigError, Problem
from dgpo_schemas.run import RunConfig

RUN = """\
run: {name: r, iterations: 5}
backbone:
  use: toy
  checkpoint: toy
prompts:
  train: {use: toy, options: {count: 3}}
rollout:
  sampler: flow-euler
rewards:
  - use: brightness
    options:
      scale: 2
  - {use: looking, options: {detector: eye}}
"""


class LookingOptions(Options):
    """A reward that uses a detector."""

    detector: Use = Field(description="Detector.")
    weight: Int = Field(default=7, description="Weight.")


class EyeOptions(Options):
    """A detector."""

    threshold: Int = Field(default=1, ge=0, description="Threshold.")


class NeedyOptions(Options):
    """That must be given something."""

    food: str = Field(description="Food.")


class FussyOptions(Options):
    """Whose own checks fail."""

    mood: str = Field(default="good", description="Mood.")

    @model_validator(mode="after")
    def _check(self) -> FussyOptions:
        if self.mood == "bad":
            raise RuntimeError("not today")
        return self


class OnceOptions(Options):
    """That cannot be read back once written."""

    a: Int | None = Field(default=None, description="A.")
    b: Int | None = Field(default=None, description="B.")

    @model_validator(mode="after")
    def _one(self) -> OnceOptions:
        if {"a", "b"} <= self.model_fields_set:
            raise ValueError("give a or b, not both")
        return self


class Plugin:
    """Components for these tests."""

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Component]:
        return [
            Component("looking", "Looks.", "nowhere:X", LookingOptions),
            Component("fussy", "Fussy.", "nowhere:X", FussyOptions),
            Component("once", "Once.", "nowhere:X", OnceOptions),
            Component("lost", "Lost.", "nowhere:X", "nowhere:Options"),
        ]

    @hookimpl
    def dgpo_weightings(self) -> Sequence[Component]:
        return [Component("needy", "Needy.", "nowhere:X", NeedyOptions)]

    @hookimpl
    def dgpo_kinds(self) -> Sequence[Kind]:
        return [Kind("detector", "dgpo_detectors", ("nowhere:X",))]

    @hookimpl
    def dgpo_detectors(self) -> Sequence[Component]:
        return [Component("eye", "Sees.", "nowhere:X", EyeOptions)]


@pytest.fixture(scope="module")
def known() -> Registry:
    """The engine's components, the toy's and the ones above."""
    from dgpo_core.builtin import plugin as builtin

    made = Registry(discover=False)
    made.register(builtin, distribution="dgpo")
    made.register(plugin, distribution="toy")
    made.register(Plugin(), distribution="test")
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sound run file."""
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def complaints(path: Path, registry: Registry, *overrides: str) -> list[str]:
    """Lines of the error, without the directory."""
    with pytest.raises(ConfigError) as caught:
        load_run_config(path, overrides, registry)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def test_a_sound_file_is_resolved(file: Path, known: Registry) -> None:
    config = load_run_config(file, ["run.seed=5"], known)
    assert config.run.seed == 5
    assert config.rewards[0].options == {"scale": 2.0, "fail": "never"}
    assert config.rewards[1].options == {"detector": {"use": "eye", "options": {}}, "weight": 7}
    assert config.rollout.sampler.use == "flow-euler"
    assert config.prompts.train.options == {"count": 3}


def test_the_resolved_file_is_read_back_alike(file: Path, known: Registry) -> None:
    config = load_run_config(file, [], known)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    assert load_run_config(file, [], known) == config
    assert load_run_config(file) == config


def test_without_a_registry_plugins_are_not_checked(file: Path) -> None:
    config = load_run_config(file, ["rewards.0.use=stranger"])
    assert config.rewards[0].options == {"scale": 2}


def test_everything_wrong_is_reported_in_the_files_order(file: Path, known: Registry) -> None:
    text = RUN.replace("iterations: 5", "iterations: none").replace("use: toy\n", "use: tooy\n")
    text = text.replace("count: 3", "count: -3").replace("flow-euler", "flow-euker").replace("scale: 2", "scale: big")
    file.write_text(text.replace("detector: eye", "detector: ear") + "optimzer: {}\n")
    assert complaints(file, known, "timesteps.use=unifrom", "objective.options.x=1") == [
        "run.yaml:1: run.iterations: must be an integer, not 'none'",
        "run.yaml:3: backbone.use: unknown backbone 'tooy'; did you mean toy? (installed: toy)",
        "run.yaml:6: prompts.train.options.count: must be at least 0, not -3",
        "run.yaml:8: rollout.sampler: unknown sampler 'flow-euker'; did you mean flow-euler? "
        "(installed: flow-dpmpp, flow-euler)",
        "run.yaml:12: rewards.0.options.scale: must be a number, not 'big'",
        "run.yaml:13: rewards.1.options.detector: unknown detector 'ear' (installed: eye)",
        "run.yaml:14: optimzer: unknown key; did you mean optimizer?",
        "--set timesteps.use=unifrom: unknown timestep policy 'unifrom'; did you mean uniform? "
        "(installed: inverse-dsm, sampler-steps, stratified, uniform)",
        "--set objective.options.x=1: unknown key; allowed: none",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rewards.1.options.detector={use: eye, options: {threshold: -1}}", "must be at least 0, not -1"),
        ("rewards.1.options={}", "rewards.1.options.detector: is missing (Detector)"),
        ("rewards.1={use: fussy, options: {mood: bad}}", "the plugin's own check failed with RuntimeError: not today"),
        ("weighting=needy", "weighting=needy: options.food: is missing (Food)"),
        ("weighting={use: needy}", "weighting.options.food: is missing (Food)"),
        ("rewards.1={use: lost}", "reward lost of test 0: cannot import nowhere:Options: ModuleNotFoundError"),
        ("rewards.1.options=3", "must be a section of keys and values, not 3"),
        ("rewards.1=3", "must be a section with keys such as"),
        ("rewards=3", "must be a list, not 3"),
        ("rewards=[]", "must have at least 1 entry, not 0"),
        ("prompts.heldout={use: tyo}", "prompts.heldout.use: unknown prompt source 'tyo'; did you mean toy?"),
        ("rewards.0.use=brightnes", "unknown reward 'brightnes'; did you mean brightness?"),
        ("rollout.group_size=1", "must be at least 2, got 1"),
        ("run=null", "must be a section with keys such as"),
        ("backbone.use=3", "must be a string, not 3"),
        ("prompts.train={}", "set exactly one of `file`"),
        ("precision.autocast=yes", "must be no or bf16, not 'yes'"),
    ],
)
def test_one_mistake(file: Path, known: Registry, override: str, expected: str) -> None:
    lines = complaints(file, known, override)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"--set {override}: ")
    assert expected in lines[0]


def test_rules_between_fields_have_lines_too(file: Path, known: Registry) -> None:
    file.write_text(RUN + "optimizer:\n  updates: 7\nadvantages: {}\n")
    (line,) = complaints(file, known)
    assert line.startswith("run.yaml:15: optimizer.updates: 7 does not divide rollout.groups = 24")


def test_a_plugin_that_cannot_be_written_keeps_what_was_written(file: Path, known: Registry) -> None:
    config = load_run_config(file, ["rewards.1={use: once, options: {a: 1}}"], known)
    assert config.rewards[1].options == {"a": 1}


def test_a_change_spelled_no_is_a_text_where_a_text_is_meant(file: Path, known: Registry) -> None:
    config = load_run_config(file, ["precision.autocast=no", "checkpoints.best=no"], known)
    assert config.precision.autocast == "no"
    assert config.checkpoints.best is False


# -- comparing ----------------------------------------------------------------------------------------------------


def make(**changes: Any) -> RunConfig:
    """The toy run."""
    return RunConfig.model_validate(run_data("out", **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": {"seed": 9}}, ["run.seed: 3 when it started, 9 now"]),
        ({"objective": {"clip": None}}, ["objective.clip: 0.01 when it started, null now"]),
        (
            {"rollout": {"sampler": "flow-dpmpp"}},
            ["rollout.sampler.use: 'flow-euler' when it started, 'flow-dpmpp' now"],
        ),
        (
            {"rewards": [{"use": "brightness", "options": {"scale": 2}}]},
            [
                "rewards.0.options: {} when it started, not given now",
                "rewards.0.options.scale: not given when it started, 2 now",
            ],
        ),
        (
            {"optimizer": {"betas": [0.8, 0.999], "schedule": "cosine"}, "run": {"iterations": 9}},
            ["optimizer.betas.0: 0.9 when it started, 0.8 now"],
        ),
    ],
)
def test_what_a_resume_must_share(changes: dict[str, Any], expected: list[str]) -> None:
    assert differing_keys(make(), make(**changes)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {"iterations": 40, "output": "elsewhere"}},
        {"rollout": {"micro_batch": 2}},
        {"optimizer": {"micro_batch": 3}},
        {"backbone": {"gradient_checkpointing": True}},
        {"evaluation": {"images": 0}},
        {"checkpoints": {"every": 3, "keep": 9, "best": False}},
        {"optimizer": {"schedule": "linear", "warmup": 3, "learning_rate": 1.0, "weight_decay": 0.0}},
        {"optimizer": {"max_grad_norm": None, "max_skipped": 0}, "scoring": {"max_missing": 1.0}},
        {"evaluation": {"every": 1, "prompts": 2, "steps": 9, "rewards": [{"use": "brightness", "name": "other"}]}},
        {"stop": {"samples": 9}, "precision": {"autocast": "bf16"}, "run": {"threads": 2, "process_timeout": 9}},
        {"logging": {"console": False, "trackers": ["tensorboard"]}},
    ],
)
def test_what_a_resume_may_change(changes: dict[str, Any]) -> None:
    assert differing_keys(make(), make(**changes)) == []


# -- anything at all ----------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["shift(0.3)", "toy", "dgpo", "brightness", "1e400", "-1", "no", "9" * 400]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["use", "options", "file", "lora", "rank", "x", "count"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(data: Any, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in nested data."""
    found = [prefix] if prefix else []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += paths(value, (*prefix, key))
    return found


WHOLE = RunConfig.model_validate(run_data("out")).model_dump(mode="json")


@st.composite
def mutations(draw: st.DrawFn) -> Any:
    """A whole run file with a few places replaced, removed or added to."""
    data = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        path: tuple[Any, ...] = draw(st.sampled_from(paths(data) or [("run",)]))
        *parents, last = path
        here: Any = data
        for component in parents:
            here = here[component]
        action = draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "add" and isinstance(here, dict):
            here[draw(st.text(min_size=1, max_size=6) | st.sampled_from(["learning_rat", "use"]))] = draw(values)
        elif action == "remove" and isinstance(here, dict):
            here.pop(last, None)
        elif isinstance(here, list) or last in here:
            here[last] = draw(values)
    return data


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutations())
def test_a_mutated_run_file_gives_a_config_or_a_config_error(file: Path, known: Registry, data: Any) -> None:
    file.write_text(yaml.safe_dump(data))
    check(file, known)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutilated_text_gives_a_config_or_a_config_error(file: Path, known: Registry, data: st.DataObject) -> None:
    text = RUN
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 6))
        noise = data.draw(st.text(alphabet="{}[]:,-&*!|>'\"%@`#?~<= \n\t0ax\\\x00\x85\ud800", max_size=4))
        text = text[:place] + noise + text[place + length :]
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    check(file, known)


def check(file: Path, registry: Registry) -> None:
    """Either outcome; an error has a place on every line."""
    problems: Sequence[Problem] = ()
    try:
        found: object = load_run_config(file, ["run.seed=1"], registry)
    except ConfigError as error:
        found, problems = error, error.problems
    assert isinstance(found, RunConfig) or problems
    assert all(problem.message and problem.where.startswith((str(file), "--set ")) for problem in problems)
