"""`python -m experiments e1`: run an experiment and write its page; `power e1`: how many seeds it needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dgpo_core.errors import UserError
from dgpo_lab.program import number_option, program
from dgpo_schemas.problems import nearest
from experiments.catalog import EXPERIMENTS, SECONDS, SIGNAL, Experiment

QUICK_PAGES = "pages"
RECORD = "record.json"
PUBLISHED = Path("docs/experiments")
POWER = "power"


def run(
    names: Annotated[
        list[str],
        typer.Argument(
            help="e1 to e13, confirm-fast, confirm, order-fast, order, seconds, signal, or `all`.",
            metavar="EXPERIMENT...",
        ),
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A reduced set that takes a quarter of an hour, to check that everything runs."),
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="Base run file, such as one of SD3.5-M; pages are written beside its runs.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs/experiments"),
    pages: Annotated[bool, typer.Option("--pages", help="Only rewrite pages and figures, from the records.")] = False,
    tuned: Annotated[
        bool, typer.Option("--tuned", help="Take the settings that the search in the record found; search no more.")
    ] = False,
    add: Annotated[
        bool,
        typer.Option("--add", help="Run only the seeds of the file that the record lacks, and add them to the record."),
    ] = False,
) -> None:
    """Run experiments and write their pages.

    Each experiment is an ablation (`dgpo ablate experiments/e1.yaml`); runs that experiments have in common are made
    once. Ctrl-C stops and saves; the same command continues. Pages are written to docs/experiments, and with --quick
    or --base beside the runs.

    Examples:

        python -m experiments e1

        python -m experiments all --quick

        python -m experiments e5 --base examples/sd35-geneval.yaml

        python -m experiments e5 --add

        python -m experiments power e5 --half-width 0.015
    """
    known = [*EXPERIMENTS, *OTHERS]
    chosen = known if names == ["all"] else names
    for name in chosen:
        if name not in known:
            raise UserError(f"unknown experiment {name!r}{nearest(name, known)} (known: {', '.join(known)}, all)")
        if name in OTHERS and base is not None:
            raise UserError(f"--base: `{name}` is measured on the miniature only; leave --base out")
    # Reduced runs and runs of another base model get directories of their own.
    for apart in ([Path(base).stem] if base is not None else []) + (["quick"] if quick else []):
        output = output.with_name(f"{output.name}-{apart}")
    directory = output / QUICK_PAGES if quick or base is not None else PUBLISHED
    _check(chosen, directory, tuned=tuned, add=add)
    for name in chosen:
        if name in OTHERS:
            typer.echo(str(OTHERS[name](output, directory, quick=quick, measured=pages)))
            continue
        experiment = EXPERIMENTS[name]
        if not pages:
            _measure(experiment, output, directory, quick=quick, base=base, tuned=tuned, add=add)
        from experiments.figures import draw
        from experiments.page import write_page
        from experiments.record import load

        shown = load(directory / name / RECORD)
        draw(shown.results, experiment.against, directory / name / "scores.png", log=bool(shown.targets))
        typer.echo(str(write_page(experiment, directory)))
    from experiments.page import write_index

    typer.echo(str(write_index(directory)))


def _check(chosen: Sequence[str], directory: Path, *, tuned: bool, add: bool) -> None:
    """Raise UserError, before anything runs, for options without what they need of records, and for pages that need
    another experiment's record."""
    from experiments.record import load

    for name in chosen:
        experiment = EXPERIMENTS.get(name)
        if experiment is None:
            continue
        record = directory / name / RECORD
        if tuned and (not experiment.tuned or load(record).search is None):
            raise UserError(f"--tuned: {name} has no search in {record}; leave the option out")
        if add:
            load(record)
        other = experiment.beside
        if other and other not in chosen[: chosen.index(name)] and not (directory / other / RECORD).is_file():
            raise UserError(f"the page of {name} needs the record of {other}: python -m experiments {other} {name}")


def _measure(
    experiment: Experiment, output: Path, directory: Path, *, quick: bool, base: str | None, tuned: bool, add: bool
) -> None:
    """Run an ablation, draw its contact sheet and write its record."""
    from experiments.conduct import run_experiment
    from experiments.record import collect, load, save
    from experiments.sheets import draw_sheet

    path, sheet = directory / experiment.key / RECORD, directory / experiment.key / "samples.png"
    known = load(path) if add else None
    search = load(path).search if tuned or (add and experiment.tuned) else None
    seeds = None
    if known is not None:
        seeds = [seed for seed in experiment.seeds if seed not in known.seeds]
        if not seeds:
            typer.echo(f"{path} has all seeds", err=True)
            return
    done = run_experiment(experiment, output, quick=quick, base=base, known=search, seeds=seeds)
    rows = draw_sheet(done.plan, sheet, steps=experiment.sheet) if known is None else known.rows
    save(path, collect(done, quick=quick, rows=rows, targets=experiment.targets, known=known))


def _seconds(output: Path, directory: Path, *, quick: bool, measured: bool) -> Path:
    """Compare savings at equal seconds, unless that is `measured`, and write the page."""
    from dgpo_core.plugins.registry import get_registry
    from experiments.seconds.measure import measure
    from experiments.seconds.page import write_page
    from experiments.seconds.record import save

    if not measured:
        size = {"budget": 4.0, "seeds": 2, "rounds": 1} if quick else {"budget": 20.0, "seeds": 5, "rounds": 8}
        found = measure(output / SECONDS, get_registry(), on_message=lambda text: typer.echo(text, err=True), **size)  # type: ignore[arg-type]
        save(directory / SECONDS / "record.json", found, quick=quick)
    return write_page(directory)


def _signal(output: Path, directory: Path, *, quick: bool, measured: bool) -> Path:
    """Measure the signal to noise of gradients, unless that is `measured`, and write the page."""
    from dgpo_core.plugins.registry import get_registry
    from experiments.signal.measure import measure
    from experiments.signal.page import write_page
    from experiments.signal.record import save

    if not measured:
        size = {"prompts": 2, "trained": 2, "redraws": 2} if quick else {"prompts": 24, "trained": 16, "redraws": 8}
        found = measure(output / SIGNAL, get_registry(), on_message=lambda text: typer.echo(text, err=True), **size)
        save(directory / SIGNAL / "record.json", found, quick=quick)
    return write_page(directory)


OTHERS = {SECONDS: _seconds, SIGNAL: _signal}
"""The experiments that are no ablations."""


def power(
    name: Annotated[
        str, typer.Argument(help="e1 to e13, confirm-fast, confirm, order-fast, order.", metavar="EXPERIMENT")
    ],
    half_width: Annotated[
        float, number_option(min=1e-6, help="Wanted half-width of the 95 % intervals of differences.")
    ] = 0.015,
    prompts: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Number of held-out prompts to report for; default: as in the record, and more."),
    ] = None,
    pages: Annotated[Path, typer.Option(help="Directory of the pages and records.")] = PUBLISHED,
) -> None:
    """Print how many seeds and prompts an experiment needs, from the variances in its record.

    Examples:

        python -m experiments power e5 --half-width 0.015

        python -m experiments power e9 --prompts 150 --prompts 500
    """
    from experiments.power import report
    from experiments.record import load

    if name not in EXPERIMENTS:
        known = list(EXPERIMENTS)
        raise UserError(f"unknown experiment {name!r}{nearest(name, known)} (with a power: {', '.join(known)})")
    for line in report(load(pages / name / "record.json").results, half_width, prompts or ()):
        typer.echo(line)


def main() -> None:
    """Run the command line; user errors become one message and exit code 2."""
    if sys.argv[1:2] == [POWER]:
        del sys.argv[1]
        program(power)
    else:
        program(run)


if __name__ == "__main__":
    main()
