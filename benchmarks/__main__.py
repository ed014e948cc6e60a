"""`python -m benchmarks`: measure, and write docs/performance.md."""

from __future__ import annotations

import sys

from benchmarks.session.installing import restarted_with_wheels

if __name__ == "__main__":  # before anything is imported that a bare machine lacks
    restarted_with_wheels(sys.argv[1:])

import statistics
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measuring import QUICKSTART
from benchmarks.page import DOCS
from dgpo_core.errors import UserError
from dgpo_lab.program import program
from dgpo_schemas.problems import nearest


def _floor(iterations: int, turns: int) -> Any:
    from benchmarks.floor import CASES, measure

    return [measure(name) for name in CASES]


def _overhead(iterations: int, turns: int) -> Any:
    from benchmarks.overhead import measure

    return measure(QUICKSTART, 2 * iterations, 1)


def _overlap(iterations: int, turns: int) -> Any:
    from benchmarks.overlap import measure

    return statistics.median(spent.share for spent in measure(QUICKSTART, iterations * turns))


def _processes(iterations: int, turns: int) -> Any:
    from benchmarks.processes import measure

    return measure(QUICKSTART, iterations, turns)


def _scaling(iterations: int, turns: int) -> Any:
    from benchmarks.scaling import SERIES, measure

    return {series.name: measure(series, iterations=iterations, turns=turns) for series in SERIES}


def _choices(iterations: int, turns: int) -> Any:
    from benchmarks.choices import CHOICES, measure

    return [measure(choice, iterations=iterations, turns=turns) for choice in CHOICES]


PARTS: dict[str, Callable[[int, int], Any]] = {
    "floor": _floor, "overhead": _overhead, "overlap": _overlap, "processes": _processes, "scaling": _scaling,
    "choices": _choices,
}  # fmt: skip


COMMANDS = {
    "cluster": "benchmarks.cluster",
    "gpu": "benchmarks.session.command",
    "ocr-engines": "benchmarks.reading.command",
    "peers": "benchmarks.peers.command",
    "roofline": "benchmarks.roofline",
}
"""Parts with options of their own, which need a module that has a function `run`."""


def run(
    parts: Annotated[
        list[str] | None, typer.Argument(help="Parts to measure: " + ", ".join(PARTS) + ".", metavar="[PART...]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One iteration, one turn: to see that it runs.")] = False,
    pages: Annotated[bool, typer.Option("--pages", help="Measure nothing: write the page anew.")] = False,
    output: Annotated[Path, typer.Option(help="Directory of performance.md and of performance/.")] = DOCS,
) -> None:
    """Measure speed and write docs/performance.md with its figures.

    Without names every part is measured, in about half an hour on two cores; others stay as recorded. Numbers are
    ratios of one run wherever machines would differ.

    Examples:

        python -m benchmarks

        python -m benchmarks overhead scaling

    Parts with options of their own:

        python -m benchmarks gpu --help

        python -m benchmarks ocr-engines --help

        python -m benchmarks peers --help

        python -m benchmarks roofline --help

        python -m benchmarks cluster --help
    """
    from benchmarks.figures import draw
    from benchmarks.page import write_page, write_roofline
    from benchmarks.record import load, save

    chosen = parts or list(PARTS)
    for name in chosen:
        if name in COMMANDS:
            raise UserError(f"{name} is measured alone: python -m benchmarks {name}")
        if name not in PARTS:
            known = [*PARTS, *COMMANDS]
            raise UserError(f"there is no part {name!r}{nearest(name, known)} (there is {', '.join(known)})")
    path = output / "performance" / "record.json"
    record = load(path)
    for name in [] if pages else chosen:
        typer.echo(f"{name} ...", err=True)
        record = save(path, name, PARTS[name](*((1, 1) if quick else (2, 3))))
    if not record:
        raise UserError(f"{path}: nothing is recorded yet; leave --pages out")
    draw(record, output / "performance")
    typer.echo(str(write_page(record, output)))
    if "roofline" in record:
        typer.echo(str(write_roofline(record, output)))


def main() -> None:
    """Run the command line; user errors become one message and exit code 2."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        program(import_module(COMMANDS[sys.argv.pop(1)]).run)
    else:
        program(run)


if __name__ == "__main__":
    main()
