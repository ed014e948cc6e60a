"""`python -m benchmarks gpu`: count beforehand, or do the session and write the page."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.page import DOCS
from benchmarks.session.cases import CASES, configuration
from benchmarks.session.installing import STARTED
from benchmarks.session.recorded import publish, read
from benchmarks.session.runner import run_steps
from benchmarks.session.steps import STEPS, TOTAL
from benchmarks.session.training import tiny_checkpoint
from dgpo_core.errors import UserError
from dgpo_lab.planning.cards import BANDWIDTH, CARDS, REACHED
from dgpo_lab.program import number_option
from dgpo_schemas.problems import nearest

__all__ = ["count", "run"]

CARD = "h200"


def run(
    steps: Annotated[list[str] | None, typer.Argument(help="Steps to do; by default all.", metavar="[STEP...]")] = None,
    wheels: Annotated[
        Path | None, typer.Option(help="Directory of wheels to install first, made by `python -m benchmarks.wheels`.")
    ] = None,
    counts: Annotated[Path | None, typer.Option(help="File of counts made beforehand, by --count.")] = None,
    count_to: Annotated[
        Path | None, typer.Option("--count", help="Measure nothing: count operations for --counts, without a GPU.")
    ] = None,
    device: Annotated[str, typer.Option(help="`cuda`; `cpu` only with --tiny.")] = "cuda",
    tiny: Annotated[bool, typer.Option("--tiny", help="A dry run with tiny models and sizes.")] = False,
    seconds: Annotated[float, number_option(min=1, help="Of the whole session.")] = TOTAL,
    output: Annotated[Path, typer.Option(help="Record of the session, written after each step.")] = Path("gpu.json"),
    write: Annotated[
        Path | None, typer.Option(help="Measure nothing: write docs/performance.md from such a record.")
    ] = None,
) -> None:
    """Measure on a GPU in one session of nine minutes, and write a record after each step.

    No weights, data or network are needed. Prepare on a machine without a GPU, copy the tree and both results, run
    there, and bring the record back:

        python -m benchmarks.wheels wheels --present packages.txt

        python -m benchmarks gpu --count counts.json

        python -m benchmarks gpu --wheels wheels --counts counts.json --output gpu.json

        python -m benchmarks gpu --write gpu.json

    A dry run without a GPU:

        python -m benchmarks gpu --device cpu --tiny
    """
    if write is not None:
        typer.echo(str(publish(write, DOCS)))
        return
    if count_to is not None:
        with tempfile.TemporaryDirectory() as directory:
            found = count(Path(directory) if tiny else None)
        count_to.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        typer.echo(str(count_to))
        return
    named = {step.name: step for step in STEPS}
    for name in steps or ():
        if name not in named:
            raise UserError(f"there is no step {name!r}{nearest(name, list(named))} (there is {', '.join(named)})")
    _check_device(device, tiny)
    with tempfile.TemporaryDirectory() as directory:
        settings = {
            "device": device, "tiny": tiny, "directory": directory, "counts": {} if counts is None else read(counts),
        }  # fmt: skip
        started = float(os.environ.get(STARTED, time.time()))
        chosen = [step for step in STEPS if not steps or step.name in steps]
        record = run_steps(chosen, settings, output, started=started, total=seconds, say=typer.echo)
    typer.echo(f"{record['seconds']:.0f} s of {seconds:.0f}: {output}")


def count(tiny: Path | None = None) -> dict[str, Any]:
    """Return the roofline of each case, and the rates of its cost model. tiny: directory of tiny checkpoints, whose
    models are counted for a dry run."""
    from benchmarks.parts import registry_with_components
    from dgpo_lab.planning.roofline import measure_roofline

    card, cases = CARDS[CARD], {}
    for name, case in CASES.items():
        typer.echo(f"{name} ...", err=True)
        checkpoint = None if tiny is None else tiny_checkpoint(tiny, name)
        config = configuration(case, Path("unused"), iterations=1, tiny=checkpoint)
        found = measure_roofline(config, registry_with_components())
        cases[name] = {
            "passes": [one.data(card) for one in found.passes],
            "peak_gib": {phase: peak / 2**30 for phase, peak in found.peaks.items()},
        }
    rates = {f"{kind} {precision}": card.tflops * share for (kind, precision), share in REACHED.items()}
    return {"card": CARD, "rates": rates | {"bandwidth": card.bandwidth * BANDWIDTH}, "cases": cases}


def _check_device(device: str, tiny: bool) -> None:
    if device not in ("cuda", "cpu"):
        raise UserError(f"--device: {device!r} is not possible{nearest(device, ['cuda', 'cpu'])} (cuda, cpu)")
    if device == "cpu" and not tiny:
        raise UserError("--device cpu: models of published sizes need a GPU; add --tiny for a dry run")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU that torch can use; `--device cpu --tiny` is a dry run without one")
