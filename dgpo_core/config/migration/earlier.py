"""Run and ablation directories that an earlier version of dgpo wrote: this version refuses them in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_schemas.text import shell_word

__all__ = ["check_ablation", "check_run", "is_config_of_run", "refusal"]

EARLIER = "dgpo 0.1"
"""The version that reads what this one refuses."""
CONFIG = "config.yaml"
PLAN = "plan.json"
MOST = 1 << 20
_SIGNS = {
    CONFIG: re.compile(rb"^optimiser:", re.MULTILINE),
    PLAN: re.compile(rb'"optimiser":'),
    "manifest.json": re.compile(rb'"format_version": *[12]\b'),
    "metrics.jsonl": re.compile(rb'\A[^\n]*"optimised_members":'),
}
"""What files of dgpo 0.1 contain and later ones do not: config.yaml and plan.json have every setting, metrics.jsonl
every metric in every line."""


def check_run(directory: Path) -> None:
    """Raise UserError if dgpo 0.1 wrote a run directory. What is not there or cannot be read is left to others."""
    if any(_has_sign(file) for file in _files(directory)):
        raise refusal(directory)


def check_ablation(directory: Path) -> None:
    """Raise UserError if dgpo 0.1 wrote an ablation's directory."""
    if _has_sign(directory / PLAN):
        raise UserError(f"{directory}: {_written()}: use {EARLIER} for it, or start the ablation again")


def refusal(directory: Path) -> UserError:
    """The error for a run directory of dgpo 0.1."""
    config = shell_word(str(directory / CONFIG))
    return UserError(
        f"{directory}: {_written()}: use {EARLIER} for it (`dgpo migrate {config} -o run.yaml` makes a run file for a "
        "new run)"
    )


def is_config_of_run(file: Path) -> bool:
    """Whether a file is the config.yaml of a run directory and not a run file."""
    beside = ("run.json", "checkpoints", "metrics.jsonl")
    return file.name == CONFIG and any((file.parent / name).exists() for name in beside)


def _written() -> str:
    from dgpo_core.system.version import __version__

    return f"was written by {EARLIER}, and this is dgpo {'.'.join(__version__.split('.')[:2])}, which cannot read it"


def _files(directory: Path) -> Iterator[Path]:
    yield from (directory / CONFIG, directory / "metrics.jsonl")
    yield from sorted(directory.glob("checkpoints/*/manifest.json"))


def _has_sign(file: Path) -> bool:
    with suppress(OSError):
        if file.is_file():
            with file.open("rb") as handle:
                return _SIGNS[file.name].search(handle.read(MOST)) is not None
    return False
