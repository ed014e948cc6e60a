"""Fixtures: tiny random checkpoints, written once, and backbones and reference pipelines built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.options import SD3Options
from dgpo_sd3.testing import make_tiny_checkpoint

Build = Callable[..., SD3Backbone]
Reference = Callable[..., Any]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without T5."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("sd3") / "tiny")


@pytest.fixture(scope="session")
def checkpoint_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With T5."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("sd3") / "tiny-t5", t5=True)


@pytest.fixture(scope="session")
def build() -> Build:
    """`build(checkpoint, options={...}, **section)` returns a backbone."""

    def make(directory: Path | str, options: dict[str, Any] | None = None, **section: Any) -> SD3Backbone:
        section.setdefault("lora", {"rank": 4, "alpha": 12})
        return SD3Backbone(
            BackboneSection(use="sd3", checkpoint=str(directory), **section),
            SD3Options(**({"text_length": 16} | (options or {}))),
            device=torch.device("cpu"),
        )

    return make


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Return diffusers' own pipeline in float32, as the reference."""

    def load(directory: Path, *, t5: bool = False) -> Any:
        without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
        pipeline = StableDiffusion3Pipeline.from_pretrained(directory, **without)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load
