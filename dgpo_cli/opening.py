"""How `sample` and `evaluate` open a run directory or a run file: in one process or in several, with notes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

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
    accept: Collection[str] | None,
    processes: int,
) -> Iterator[Target]:
    """An opened target (`open_target`), closed at the end; in several processes, each of which comes here, if the
    command of `context` was asked for them. None of them has the whole result before the others have done their part.
    """
    from dgpo_cli.launch import in_processes, left_to_launcher
    from dgpo_core.plugins.isolation import printing_aside

    in_processes(context, processes)
    with left_to_launcher(), printing_aside():  # standard output is for the result, whatever a reward prints
        from dgpo_core.api import target

        opened = target.open_target(
            path, model=model, checkpoint=checkpoint, overrides=overrides or (), accept=accept or (), on_message=note
        )
        try:
            yield opened
        finally:
            opened.engine.close()
