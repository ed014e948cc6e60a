"""`dgpo doctor`: diagnose a run from its logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dgpo_cli.working import working

__all__ = ["doctor"]


def doctor(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, finished or unfinished.", metavar="RUN")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of diagnoses instead of text.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 1 if there is a problem.")] = False,
) -> None:
    """Diagnose a run from its logs, and suggest settings to change.

    Looks for known signs of failure: blurred outputs and artifacts, slow convergence, reward hacking, problems with
    rewards, drift from the reference model. Each finding lists the measured values with their source, why they matter,
    and which setting to change to which value. The run may be in progress.

    Examples:

        dgpo doctor runs/quickstart

        dgpo doctor runs/first runs/second --json

        dgpo doctor runs/quickstart --strict
    """
    import json

    from dgpo_core.errors import UserError

    for run in runs:
        if (run / "plan.json").is_file() and not (run / "config.yaml").exists():
            raise UserError(f"{run}: this is an ablation directory; its runs are in {run / 'cells'}/VARIANT/seed-N")
    # Read all runs before printing anything, so that an error in the last path is not hidden below pages of output.
    with working("reading the logs"):
        from dgpo_core.plugins.registry import get_registry
        from dgpo_lab.doctoring.diagnosis import diagnose
        from dgpo_lab.doctoring.facts import read_facts
        from dgpo_lab.doctoring.rendering import as_data, print_diagnosis

        registry = get_registry()
        diagnoses = [diagnose(facts) for facts in [read_facts(run, registry) for run in runs]]
    if as_json:
        typer.echo(json.dumps([as_data(diagnosis) for diagnosis in diagnoses], indent=1))
    else:
        from rich.console import Console

        console = Console()
        for number, diagnosis in enumerate(diagnoses):
            if number:
                console.print()
            print_diagnosis(console, diagnosis)
    if strict and any(diagnosis.count("problem") for diagnosis in diagnoses):
        raise typer.Exit(1)
