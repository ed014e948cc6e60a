"""Fixtures: tiny random checkpoints, written once, and backbones and reference pipelines built from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline

from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.options import WanOptions
from dgpo_wan.testing import make_tiny_checkpoint

Build = Callable[..., WanBackbone]
Reference = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread: on a busy machine, two OpenMP threads can be much slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One transformer, as Wan 2.1."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "tiny")


@pytest.fixture(scope="session")
def two_experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two transformers that meet at sigma 0.8, as Wan 2.2 A14B."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("wan") / "two", boundary=0.8)


@pytest.fixture(scope="session")
def build() -> Build:
    """`build(checkpoint, options={...}, **section)` returns a backbone."""

    def make(directory: Path | str, options: dict[str, Any] | None = None, **section: Any) -> WanBackbone:
        section.setdefault("lora", {"rank": 4, "alpha": 12})
        return WanBackbone(
            BackboneSection(use="wan", checkpoint=str(directory), **section),
            WanOptions(**({"frames": 9, "text_length": 24, "decode_chunk": 2} | (options or {}))),
            device=torch.device("cpu"),
        )

    return make


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Return diffusers' own pipeline in float32, as the reference."""

    def load(directory: Path) -> Any:
        pipeline = WanPipeline.from_pretrained(directory)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load
