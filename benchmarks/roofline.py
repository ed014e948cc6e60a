"""The roofline of published models on a card that need not be there.

    python -m benchmarks roofline                                     # all cases
    python -m benchmarks roofline "sd3.5-m, 512" --longest 10 --set backbone.lora.rank=32

Counts the kernels of one group under CUDA's rules on tensors without values; docs/roofline.md says how.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.floor import CARD
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_lab.planning.cards import CARDS
from dgpo_lab.planning.roofline import Roofline, measure_roofline
from dgpo_schemas.problems import nearest

__all__ = ["CARD", "CASES", "Case", "lines", "measure", "run"]

EXAMPLES = Path(__file__).parents[1] / "examples"
GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A run of the examples, with other settings."""

    example: str
    settings: Sequence[str] = ()


CASES = {
    "sd3.5-m, 512": Case("sd35-geneval.yaml"),
    "sd3.5-m, 1024": Case("sd35-geneval.yaml", ("rollout.resolution=1024", "optimizer.micro_batch=2")),
    "flux.1-dev, 512": Case("flux1-dev-pickscore.yaml"),
    "wan2.1 1.3b, 240 x 416": Case("wan21-1.3b-ocr.yaml"),
}


def measure(name: str, settings: Sequence[str] = ()) -> Roofline:
    """Count the passes of a case, with more settings of the run file."""
    registry = Registry()
    case = CASES[name]
    return measure_roofline(load_run_config(EXAMPLES / case.example, [*case.settings, *settings], registry), registry)


def data(found: Roofline, card: str, longest: int) -> dict[str, Any]:
    """Return a roofline as JSON data."""
    return {
        "passes": [one.data(CARDS[card], longest) for one in found.passes],
        "peak_gib": {phase: peak / GIB for phase, peak in found.peaks.items()},
    }


def lines(name: str, measured: dict[str, Any], card: str) -> list[str]:
    """Format a case as a text table."""
    text = [
        f"{name}, on {card}",
        f"{'pass':<32} {'samples':>7} {'kernels':>8} {'GB':>8} {'TFLOP':>8} {'ideal ms':>9} {'products':>9} "
        f"{'share':>6} {'calls':>7} {'blocking':>8}",
    ]
    for row in measured["passes"]:
        text.append(
            f"{row['pass']:<32} {row['samples']:>7} {row['kernels']:>8,.0f} {row['bytes'] / 1e9:>8.1f} "
            f"{row['operations'] / 1e12:>8.2f} {row['ideal_ms']:>9.1f} {row['busy_ms']:>9.1f} {row['share']:>6.2f} "
            f"{row['dispatches']:>7,.0f} {row['blocking']:>8.1f}"
        )
        for one in row["longest"]:
            text.append(f"    {one['operator']:<52} {one['kernels']:>8,.1f} {one['bytes'] / 1e9:>8.2f} GB "
                        f"{one['ms']:>9.2f} ms")  # fmt: skip
        if row["longest"]:
            text += [f"    blocking, {count:>3} in all: {place}" for place, count in row["places"].items()]
    peaks = ", ".join(f"{phase} {peak:.1f}" for phase, peak in measured["peak_gib"].items())
    return [*text, f"peak GiB: {peaks}", ""]


def run(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Of: " + "; ".join(CASES) + ". By default all.", metavar="[CASE...]")
    ] = None,
    card: Annotated[str, typer.Option(help="GPU: " + ", ".join(CARDS) + ".")] = CARD,
    longest: Annotated[int, typer.Option(min=0, help="Operators to list for each pass, and copies by place.")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting of the run files.", metavar="KEY=VALUE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Write docs/roofline.md from all cases.")] = False,
) -> None:
    """Count kernels, bytes, operations and host copies of published models, and their ideal time on a GPU.

    No GPU is needed. A roll-out step includes the sampler and guidance, averaged over the steps of a micro-batch; a
    training micro-batch all passes that one of the optimizer's micro-batches costs at a timestep.

    Examples:

        python -m benchmarks roofline

        python -m benchmarks roofline "sd3.5-m, 512" --longest 10 --set rollout.merge_adapter=true
    """
    if card not in CARDS:
        raise UserError(f"--card: unknown GPU {card!r}{nearest(card, CARDS)} (known: {', '.join(CARDS)})")
    for name in cases or ():
        if name not in CASES:
            raise UserError(f"there is no case {name!r}{nearest(name, list(CASES))} (there is {'; '.join(CASES)})")
    if write and (cases or overrides or card != CARD):
        raise UserError(f"--write: the page has all cases as they are, on {CARD}; leave cases, --set and --card out")
    found: dict[str, Any] = {}
    for name in cases or CASES:
        found[name] = data(measure(name, overrides or ()), card, max(longest, 10) if write else longest)
        if not as_json:
            typer.echo("\n".join(lines(name, found[name], card)))
    if as_json:
        typer.echo(json.dumps({"card": card, "settings": overrides or [], "cases": found}, indent=1))
    if write:
        from benchmarks.page import DOCS, write_roofline
        from benchmarks.record import save

        typer.echo(str(write_roofline(save(DOCS / "performance" / "record.json", "roofline", found), DOCS)))
