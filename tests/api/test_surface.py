"""The names of `dgpo_core`: what importing it costs, and what is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import dgpo_core

SURFACE = {"Run", "load_run", "Samples", "score", "Scores", "functional", "Callback", "Prompt", "UserError", "hookimpl"}
HEAVY = ("torch", "diffusers", "transformers", "pydantic", "numpy", "PIL")


def test_importing_imports_nothing_heavy_and_shows_everything() -> None:
    code = (
        "import sys, dgpo_core\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        f"print(sorted({SURFACE!r} - set(dir(dgpo_core))))\n"
        "from dgpo_core import Run, load_run\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "[]"]


def test_every_public_name_is_there() -> None:
    assert set(dgpo_core.__all__) >= SURFACE
    for name in dgpo_core.__all__:
        assert getattr(dgpo_core, name) is not None, name
    for name in dgpo_core.functional.__all__:
        assert callable(getattr(dgpo_core.functional, name)), name


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        dgpo_core.trian  # noqa: B018
