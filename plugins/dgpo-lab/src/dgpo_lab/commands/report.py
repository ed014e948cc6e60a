"""`dgpo report`: one self-contained HTML page about a run or an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.working import working

__all__ = ["report"]


def report(
    run: Annotated[
        Path, typer.Argument(help="A run directory, finished or unfinished, or that of an ablation.", metavar="RUN")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Output file; default RUN/report.html, of an ablation results.html.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Write one HTML page about a run.

    The page shows scores, samples, training curves, time and memory, and how to reproduce the run. It embeds its
    images and needs no network, can be printed, and follows the reader's light or dark theme. Of an ablation, it
    compares the variants; `dgpo ablate --report` also writes tables as text, CSV and JSON.

    Examples:

        dgpo report runs/quickstart

        dgpo report runs/quickstart --output quickstart.html

        dgpo report runs/ablation-weighting
    """
    from dgpo_core.errors import UserError
    from dgpo_lab.ablation.directory import is_ablation

    ablation = is_ablation(run)
    page = output or run / ("results.html" if ablation else "report.html")
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

        if ablation:
            text, headline = _of_ablation(run)
        else:
            data = read_run(run, get_registry())
            text, headline = render(data), outcome(data)
        work.say(f"writing {page}")
        try:
            write_text(page, text)
        except UserError as error:
            raise UserError(f"{error}; write the page to another path with --output") from error
    typer.echo(headline, err=True)
    typer.echo(str(page))


def _of_ablation(directory: Path) -> tuple[str, str]:
    """Return the page of an ablation, and its main result in a sentence."""
    from dgpo_lab.ablation import words
    from dgpo_lab.ablation.directory import read_plan
    from dgpo_lab.ablation.page import render
    from dgpo_lab.ablation.results import results_of

    plan = read_plan(directory)
    results = results_of(plan)
    return render(plan, results), words.headline(results)
