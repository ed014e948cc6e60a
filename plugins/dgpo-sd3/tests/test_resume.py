"""A resumed run may change only the options that affect memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.config.changes import changes
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_schemas.run import RunConfig


def config(directory: Path, **options: Any) -> RunConfig:
    data = {
        "run": {"name": "run", "iterations": 2},
        "backbone": {"use": "sd3", "checkpoint": "a/b", "options": options},
        "prompts": {"train": "train.txt"},
        "rewards": [{"use": "geneval", "options": {"detector": {"use": "shapes"}}}],
    }
    file = directory / "run.yaml"
    file.write_text(json.dumps(data))
    return load_run_config(file, (), get_registry())


@pytest.mark.parametrize(
    ("key", "value", "effect"),
    [("decode_chunk", 3, "any time"), ("offload_text", True, "any time"), ("text_length", 0, "fixed")],
)
def test_effect_of_changed_options(key: str, value: Any, effect: str, tmp_path: Path) -> None:
    before, after = config(tmp_path), config(tmp_path, **{key: value})
    (found,) = changes(before, after, get_registry())
    assert (found.key, found.now, found.effect) == (f"backbone.options.{key}", value, effect)
    (unknown,) = changes(before, after)
    assert unknown.effect == "fixed"
