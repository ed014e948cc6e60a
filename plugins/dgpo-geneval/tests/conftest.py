"""Shared by the tests: a tiny Mask2Former, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo_geneval.testing import make_tiny_mask2former


@pytest.fixture(scope="session")
def tiny_mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows all 80 classes."""
    return make_tiny_mask2former(tmp_path_factory.mktemp("mask2former") / "tiny")
