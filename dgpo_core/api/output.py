"""Check output paths before the work begins, so that neither results nor existing files are lost."""

from __future__ import annotations

import contextlib
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.system.files import is_stream, why_not_writable
from dgpo_core.system.reading import why
from dgpo_core.system.spelling import option
from dgpo_schemas.text import lone_surrogate

__all__ = ["check_directory", "check_file"]

PARTS = ("checkpoints", "images", "rewards", "scores", "trackers")
"""Subdirectories of a run directory."""


def check_directory(output: Path, *, force: bool, target: Path | None = None) -> None:
    """Raise UserError unless `output` can be written as a directory of its own; `force` allows replacing its contents.

    Always refuses the working directory, the home directory, a directory that contains the run directory or run file
    `target`, a run directory, and directories inside the subdirectories of a run.
    """
    if target is not None and not target.exists():
        raise UserError(f"{target}: no such run directory or run file")
    where = option("directory", output)
    if lone_surrogate(str(output.absolute())) is not None:
        raise UserError(f"{where}: has bytes that are not UTF-8 in its name, which other programs cannot open")
    if output.exists() and not output.is_dir():
        raise UserError(f"{where}: is a file; name a directory")
    try:
        resolved = output.resolve()
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise UserError(f"{where}: cannot be written: {why(error)}") from error
    kept = [("the working directory", Path.cwd())]
    if target is not None:
        kept.append((str(target), target.resolve()))
    with contextlib.suppress(RuntimeError):  # a user without a home directory
        kept += [("the home directory", Path.home().resolve())]
    kept += [(f"the run {place}", place) for place in (resolved,) if _is_run(place)]
    for place in (resolved, *resolved.parents):
        if place.name in PARTS and _is_run(place.parent):
            kept.append((f"{place.name} of the run {place.parent}", resolved))
    for what, place in kept:
        if place.is_relative_to(resolved):
            raise UserError(f"{where}: would replace {what}; name a directory of its own")
    reason = why_not_writable(output.parent)
    if reason is not None:
        raise UserError(f"{where}: cannot be written: {reason}")
    if output.exists() and any(output.iterdir()) and not force:
        raise UserError(
            f"{where}: exists and is not empty; name another directory, or replace it with {option('force', True)}"
        )


def check_file(output: Path) -> None:
    """Raise UserError unless a file can be written at `output`."""
    if output.is_dir():
        raise UserError(f"{option('output', output)}: is a directory; name a file")
    if is_stream(output):
        return
    if not output.parent.is_dir():
        raise UserError(f"{option('output', output)}: no such directory {output.parent}")
    reason = why_not_writable(output.parent)
    if reason is not None:
        raise UserError(f"{option('output', output)}: cannot be written: {reason}")


def _is_run(directory: Path) -> bool:
    return (directory / "config.yaml").is_file() and (directory / "checkpoints").is_dir()
