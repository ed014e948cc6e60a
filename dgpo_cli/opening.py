"""Open a run directory or a run file for `sample` and `evaluate`, in one or several processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dgpo_cli.working import working

if TYPE_CHECKING:
    from dgpo_core.api.target import Target

__all__ = ["note", "working_on"]


def note(text: str) -> None:
    """Print a note on standard error."""
    typer.echo(f"note: {text}", err=True)


@contextmanager
def working_on(
    context: typer.Context,
    path: Path,
    *,
    model: str | None,
    checkpoint: str,
    overrides: Sequence[str] | None,
    preset: Sequence[str] | None,
    accept: Collection[str] | None,
    processes: int,
) -> Iterator[Target]:
    """Context manager that opens a target (`open_target`) and closes it. It tells that it is loading.

    With `processes` > 1 the command of `context` is launched in that many processes instead, each of which enters this
    context manager and computes a part of the result.
    """
    from dgpo_cli.launch import in_processes, left_to_launcher
    from dgpo_core.plugins.isolation import printing_aside

    in_processes(context, processes)
    with left_to_launcher(), printing_aside():  # prints of rewards must not mix with the result
        with working(f"loading {path}"):
            from dgpo_core.api import target

            opened = target.open_target(
                path, model=model, checkpoint=checkpoint, overrides=overrides or (), preset=preset, accept=accept or (),
                on_message=note,
            )  # fmt: skip
        try:
            yield opened
        finally:
            opened.engine.close()
