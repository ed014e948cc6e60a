"""`dgpo compare`: one table over runs and suites."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.working import working

__all__ = ["Format", "compare"]


class Format(StrEnum):
    """Formats of the table."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


ENDINGS = {".md": Format.MARKDOWN, ".csv": Format.CSV, ".json": Format.JSON, ".html": Format.HTML}


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, or files that `dgpo evaluate --suite NAME --output FILE` wrote.", metavar="RUN"
        ),
    ],
    how: Annotated[
        Format | None, typer.Option("--format", help="Default: by the extension of --output, else table.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write to a file (.md, .csv, .json, .html) instead.", metavar="FILE"),
    ] = None,
) -> None:
    """Compare runs: their last evaluations and their suites, in one table.

    Differences are to the first run. Where two runs were evaluated on the same prompts, the interval of the difference
    is over prompts, paired; otherwise there is none.

    Examples:

        dgpo compare runs/a runs/b

        dgpo compare runs/a runs/b --output table.md
    """
    from dgpo_core.api.output import check_file
    from dgpo_core.errors import UserError
    from dgpo_core.system.files import write_text

    if output is not None:
        check_file(output)
        if how is None and output.suffix not in ENDINGS:
            raise UserError(f"--output {output}: give --format, or a name that ends in {', '.join(ENDINGS)}")
    how = how or (ENDINGS[output.suffix] if output is not None else Format.TABLE)
    with working("reading the runs") as work:
        from dgpo_lab.comparison.comparing import rows
        from dgpo_lab.comparison.formats import render
        from dgpo_lab.comparison.reading import distinct, read_entry

        entries = distinct([read_entry(path) for path in runs])
        work.say("comparing")
        text = render(entries, list(rows(entries)), how.value)
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        typer.echo(str(output))
