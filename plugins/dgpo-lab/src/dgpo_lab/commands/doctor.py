"""`dgpo doctor`: what ails a run, from its logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["doctor"]


def doctor(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or not.", metavar="RUN...")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of diagnoses instead of text.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is a problem.")] = False,
) -> None:
    """Say what ails a run, and which setting to change.

    Reads the logs of a run, also of one that goes on, and looks for known signs of failure: blurred outputs and
    artifacts, slow convergence, reward hacking, trouble with rewards, drift from the reference. Each finding has its
    numbers, where they stand, and a setting to try.

    Examples:

        dgpo doctor runs/quickstart

        dgpo doctor runs/first runs/second --json

        dgpo doctor runs/quickstart --strict
    """
    import json

    from dgpo_core.errors import UserError
    from dgpo_core.plugins.registry import get_registry
    from dgpo_lab.doctoring.diagnosis import diagnose
    from dgpo_lab.doctoring.facts import read_facts
    from dgpo_lab.doctoring.rendering import as_data, print_diagnosis

    registry = get_registry()
    for run in runs:
        if (run / "plan.json").is_file() and not (run / "config.yaml").exists():
            raise UserError(f"{run}: an ablation's directory; its runs are in {run / 'cells'}/VARIANT/seed-N")
    # All are read before one is told of, so that a mistake in the last name does not stand below pages.
    found = [diagnose(facts) for facts in [read_facts(run, registry) for run in runs]]
    if as_json:
        typer.echo(json.dumps([as_data(diagnosis) for diagnosis in found], indent=1))
    else:
        from rich.console import Console

        console = Console()
        for number, diagnosis in enumerate(found):
            if number:
                console.print()
            print_diagnosis(console, diagnosis)
    if strict and any(diagnosis.count("problem") for diagnosis in found):
        raise typer.Exit(1)
