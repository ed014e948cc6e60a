"""`dgpo report`: one self-contained HTML page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="A run directory, finished or not.", metavar="RUN")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Page to write; by default RUN/report.html.", metavar="FILE")
    ] = None,
) -> None:
    """Write one HTML page about a run.

    Scores, samples, curves, costs, and how to repeat it. The page holds its images and needs no network; it prints
    well and follows the reader's light or dark theme.

    Examples:

        dgpo report runs/quickstart

        dgpo report runs/quickstart --output quickstart.html
    """
    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_core.system.files import write_text
    from dgpo_lab.reporting.data import read_run
    from dgpo_lab.reporting.page import render
    from dgpo_lab.reporting.summary import outcome

    page = output or run / "report.html"
    if page.is_dir():
        raise UserError(f"--output {page}: this is a directory; name a file, for example {page / 'report.html'}")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no directory {output.parent}")
    found = read_run(run, get_registry())
    try:
        write_text(page, render(found))
    except UserError as error:
        raise UserError(f"{error}; --output names another place") from error
    typer.echo(outcome(found), err=True)
    typer.echo(str(page))
