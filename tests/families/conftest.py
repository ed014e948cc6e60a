"""Tiny checkpoints of all families, made once per process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.families.proof import proofs


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`checkpoint("flux, schnell")`: a family's tiny checkpoint; not to be changed."""
    return cache(lambda name: proofs()[name].make(tmp_path_factory.mktemp("family") / "tiny"))
