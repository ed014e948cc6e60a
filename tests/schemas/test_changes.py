"""Which settings a resume may change: every field's answer, the page about it, and the words for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, RESUME
from dgpo_schemas.changes import Effect, changeable, effect_of, summary
from dgpo_schemas.run import RunConfig

PAGE = Path(__file__).parents[2] / "docs/resume.md"


def test_the_page_lists_what_the_fields_declare() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| (any time|from there on) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert dict(rows) == changeable()
    assert len(rows) == len(changeable())


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("run.seed", "fixed"),
        ("rollout.group_size", "fixed"),
        ("rollout.sampler.options.noise", "fixed"),
        ("rewards.0.weight", "fixed"),
        ("rewards.12.worker.environment.A", "any time"),
        ("rewards.0.options.worker", "fixed"),
        ("objective.ema.every", "fixed"),
        ("optimizer.betas.0", "fixed"),
        ("optimizer.learning_rate", "from there on"),
        ("backbone.lora.rank", "fixed"),
        ("backbone.options.gradient_checkpointing", "fixed"),
        ("evaluation.sampler.use", "from there on"),
        ("evaluation.rewards.3.options.scale", "from there on"),
        ("evaluation.rewards.3.service.urls.0", "any time"),
        ("evaluation.monitors.tolerances.diversity", "any time"),
        ("stop.seconds", "any time"),
        ("stopping", "fixed"),
        ("prompts.train.limit", "fixed"),
    ],
)
def test_the_innermost_declaration_holds(key: str, effect: str) -> None:
    assert effect_of(key) == effect


def test_what_plugins_declare_of_their_options_holds_for_those_alone() -> None:
    known: dict[str, Effect] = {"rewards.1.options.batch": "any time", "evaluation.rewards.0.options.batch": "any time"}
    effects = {key: effect_of(key, known) for key in (*known, "rewards.0.options.batch", "rewards.1.options.batches")}
    assert list(effects.values()) == ["any time", "any time", "fixed", "fixed"]
    assert effect_of("evaluation.rewards.0.options.batch.deeper", known) == "any time"
    assert effect_of("evaluation.rewards.1.options.batch", known) == "from there on"


def test_schemas_report_editors_of_it() -> None:
    definitions = RunConfig.model_json_schema()["$defs"]
    found: dict[str, Any] = {
        f"{name}.{key}": field[RESUME]
        for name, section in definitions.items()
        for key, field in section.get("properties", {}).items()
        if RESUME in field
    }
    assert found["OptimizerSection.learning_rate"] == FROM_THERE_ON[RESUME]
    assert found["OptimizerSection.micro_batch"] == ANYTIME[RESUME]
    assert "OptimizerSection.betas" not in found


def test_a_summary_names_every_setting() -> None:
    words = set(re.findall(r"[\w.]+", summary()))
    for key in changeable():
        section, _, rest = key.partition(".")
        assert section in words or f"{section}." in words or key in words, key
        assert section in words or rest in words or key in words, key
