"""Messages name an option on the command line and a keyword in Python."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo_core.system.spelling import arguments, in_python, option, override, setting


@pytest.mark.parametrize(
    ("name", "value", "command", "python"),
    [
        ("micro_batch", None, "--micro-batch", "micro_batch"),
        ("micro_batch", 4, "--micro-batch 4", "micro_batch=4"),
        ("resume", True, "--resume", "resume=True"),
        ("resume", "auto", "--resume auto", "resume='auto'"),
        ("directory", Path("x"), "--output x", "directory='x'"),
        ("overrides", None, "--set", "overrides"),
    ],
)
def test_options(name: str, value: object, command: str, python: str) -> None:
    assert option(name, value) == command
    with in_python():
        assert option(name, value) == python
    assert option(name, value) == command


def test_several_arguments_and_settings() -> None:
    assert arguments(resume=True, accept="logs") == "--resume --accept logs"
    assert (setting("run.seed", "SEED"), override()) == ("--set run.seed=SEED", "--set")
    with in_python():
        assert arguments(resume=True, accept="logs") == "resume=True, accept='logs'"
        assert (setting("run.seed", "SEED"), override()) == ("overrides={'run.seed': SEED}", "override")
