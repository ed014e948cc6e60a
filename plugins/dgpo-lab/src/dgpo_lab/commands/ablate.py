"""`dgpo ablate`: train variants of a run with several seeds and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dgpo_cli.launch import PREEMPTED

if TYPE_CHECKING:
    from dgpo_lab.ablation.plan import Plan

__all__ = ["ablate"]


def ablate(
    file: Annotated[Path | None, typer.Argument(help="The ablation file (YAML).", metavar="ABLATION.yaml")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Only rewrite the results of an ablation.", metavar="DIRECTORY")
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            "--reuse", help="Directory of another ablation from which to copy identical finished runs; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every run file, list the cells, write nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")] = False,
) -> None:
    """Train variants of a run with several seeds and compare them.

    Trains every variant with every seed, each in a separate process and directory in OUTPUT/NAME/cells. A seed gives
    the same prompts and noise to all variants. Writes results.md, .csv, .json and .html.

    Cells are ordinary runs. With --reuse, identical runs that another ablation has finished are copied.

    Ctrl-C saves and stops; run the same command to continue. Failed cells do not stop the others, and are retried by
    the next command. Exit code 1: some cells failed.

    Examples:

        dgpo ablate examples/ablation-weighting.yaml --dry-run

        dgpo ablate examples/ablation-weighting.yaml

        dgpo ablate --report runs/ablation-weighting
    """
    if (file is None) == (report is None):
        raise typer.BadParameter("give either an ablation file or --report with the directory of an ablation")
    if report is not None:
        if reuse:
            raise typer.BadParameter("--reuse belongs to an ablation file; --report trains nothing")
        _write(_saved([report])[0])
        return
    assert file is not None
    from dgpo_core.plugins.registry import get_registry
    from dgpo_lab.ablation.plan import make_plan

    plan = make_plan(file, get_registry())
    others = _saved(reuse or ())
    if dry_run:
        _list(plan)
        return

    from dgpo_core.system.stopping import StopRequest
    from dgpo_lab.ablation.directory import AblationDirectory
    from dgpo_lab.ablation.progress import make_watcher
    from dgpo_lab.ablation.runner import choose_resources, run_cells

    resources = choose_resources(plan, _cuda_devices())
    directory, progress, stop = AblationDirectory(plan), make_watcher(quiet=quiet), StopRequest()
    with directory.claimed(file.read_text(encoding="utf-8")), stop.on_signals(progress.say):
        adopted = sum(directory.adopt(cell, others) is not None for cell in plan.cells()) if others else 0
        if adopted:
            progress.say(f"{adopted} finished cells copied from {', '.join(map(str, reuse or ()))}")
        states = run_cells(plan, directory, resources, stop=stop, progress=progress)
        if any(state.status == "finished" for state in states.values()):
            _write(plan)
    failed = [label for label, state in states.items() if state.status == "failed"]
    if stop.requested:
        progress.say("stopped; run the same command to continue")
    if failed:
        typer.echo(f"{len(failed)} of {len(states)} cells failed: {'; '.join(failed)}", err=True)
        raise typer.Exit(1)
    if stop.requested and not stop.from_keyboard and any(state.status != "finished" for state in states.values()):
        raise typer.Exit(PREEMPTED)


def _saved(directories: Sequence[Path]) -> list[Plan]:
    """Read the plans of ablation directories. Imports nothing heavy if there are none."""
    if not directories:
        return []
    from dgpo_lab.ablation.directory import read_plan

    return [read_plan(directory) for directory in directories]


def _cuda_devices() -> list[str]:
    """Return the visible CUDA devices as named in CUDA_VISIBLE_DEVICES."""
    import os

    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def _list(plan: Plan) -> None:
    """Print the cells of a plan."""
    cells = list(plan.cells())
    variants = len(plan.variants)
    typer.echo(f"{plan.path}: {variants} variants x {len(plan.ablation.seeds)} seeds = {len(cells)} cells, all valid")
    for variant in plan.variants:
        run, rollout = variant.config.run, variant.config.rollout
        samples = run.iterations * rollout.groups * rollout.group_size
        note = "  (baseline)" if variant.name == plan.baseline else ""
        typer.echo(f"  {variant.name}: {run.iterations} iterations, {samples:,} samples a seed{note}")
    typer.echo(f"decided by {plan.reward}; nothing was written")


def _write(plan: Plan) -> None:
    """Write the results from the logs of the cells."""
    from dgpo_core.system.files import write_text
    from dgpo_lab.ablation import tables, words
    from dgpo_lab.ablation.page import render
    from dgpo_lab.ablation.results import results_of

    results = results_of(plan)
    for name, text in (
        ("results.md", tables.as_markdown(plan, results)),
        ("results.csv", tables.as_csv(results)),
        ("cells.csv", tables.cells_csv(results)),
        ("results.json", tables.as_json(plan, results)),
        ("results.html", render(plan, results)),
    ):
        write_text(plan.path / name, text)
    typer.echo(words.headline(results), err=True)
    typer.echo(str(plan.path / "results.html"))
