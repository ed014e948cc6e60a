"""`dgpo report`: one self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.working import working

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or unfinished.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Output file; default RUN/report.html.", metavar="FILE")
    ] = None,
) -> None:
    """Write one HTML page about a run.

    The page shows scores, samples, training curves, time and memory, and how to reproduce the run. It embeds its
    images and needs no network, can be printed, and follows the reader's light or dark theme.

    Examples:

        dgpo report runs/quickstart

        dgpo report runs/quickstart --output quickstart.html
    """
    from dgpo_core.errors import UserError

    page = output or run / "report.html"
    if page.is_dir():
        raise UserError(f"--output {page}: is a directory; give a file name, for example {page / 'report.html'}")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {output}: no such directory: {output.parent}")
    with working(f"reading {run}") as work:
        from dgpo_core.plugins.registry import get_registry
        from dgpo_core.system.files import write_text
        from dgpo_lab.reporting.data import read_run
        from dgpo_lab.reporting.page import render
        from dgpo_lab.reporting.summary import outcome

        data = read_run(run, get_registry())
        work.say(f"writing {page}")
        try:
            write_text(page, render(data))
        except UserError as error:
            raise UserError(f"{error}; write the page to another path with --output") from error
    typer.echo(outcome(data), err=True)
    typer.echo(str(page))
