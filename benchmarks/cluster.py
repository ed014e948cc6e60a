"""Published runs on 1 to 512 GPUs, by `dgpo plan`: the table of docs/scaling.md.

    python -m benchmarks cluster [--card h200] [--network 400]

Each run is planned with its published groups, and with as many groups as keep the samples of a GPU at those of 8 GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_lab.planning.cards import CARDS
from dgpo_lab.planning.fit import at_largest_size, changed
from dgpo_lab.planning.plan import Plan, make_plan, measure_model
from dgpo_lab.planning.traffic import LINKS, iteration_seconds, traffic
from dgpo_lab.program import number_option
from dgpo_schemas.problems import nearest

__all__ = ["RUNS", "Row", "run", "written"]

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- cluster: made by `python -m benchmarks cluster` -->\n", "<!-- cluster end -->\n"
RUNS = {"SD3.5-M": "sd35-geneval", "FLUX.1 dev": "flux1-dev-pickscore", "Wan 2.1 1.3B": "wan21-1.3b-ocr"}
CLUSTERS = ((1, 1), (8, 1), (64, 8), (512, 64))
"""Numbers of GPUs and machines."""
FRACTION = 0.4
HEAD = (
    "run",
    "GPUs",
    "machines",
    "groups",
    "samples per GPU",
    "iteration, s",
    "communication, s",
    "largest",
    "efficiency",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A run on a cluster. seconds: of an iteration; exposed: of communication that is not hidden, by name."""

    run: str
    processes: int
    machines: int
    groups: int
    samples: float
    seconds: float
    exposed: dict[str, float]
    efficiency: float

    def cells(self) -> Iterator[str]:
        """The cells of the table."""
        largest = max(self.exposed, key=lambda name: self.exposed[name], default="")
        total = sum(self.exposed.values())
        yield from (self.run, str(self.processes), str(self.machines), str(self.groups), f"{self.samples:g}")
        yield from (f"{self.seconds:.1f}", f"{total:.2f}" if total else "-", largest or "-", f"{self.efficiency:.0%}")


def run(
    card: Annotated[str, typer.Option(help="GPU to plan for.")] = "h200",
    network: Annotated[float, number_option(help="GB/s that a machine sends to others.", min=1e-3)] = 400.0,
) -> None:
    """Plan published runs on clusters, and write the table of docs/scaling.md."""
    if card not in CARDS:
        raise UserError(f"--card: unknown GPU {card!r}{nearest(card, CARDS)} (known: {', '.join(CARDS)})")
    rows = [row for name in RUNS for row in planned(name, card, network)]
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), rows, card, network), encoding="utf-8")
    typer.echo(str(PAGE))


def planned(name: str, card: str, network: float) -> Iterator[Row]:
    """Plan a run on all clusters."""
    registry = get_registry()
    published = at_largest_size(load_run_config(ROOT / "examples" / f"{RUNS[name]}.yaml", (), registry), registry)
    model = measure_model(published, registry)
    each = -(-published.rollout.groups // 8)
    for processes, machines in CLUSTERS:
        for groups in dict.fromkeys((published.rollout.groups, max(published.rollout.groups, each * processes))):
            typer.echo(f"{name}: {processes} GPUs, {groups} groups", err=True)
            config = changed(published, {"rollout.groups": groups})
            plan = make_plan(config, model, registry, processes, machines=machines)
            yield _row(name, config, plan, card, network)


def _row(name: str, config: Any, plan: Plan, card: str, network: float) -> Row:
    seconds = plan.seconds(CARDS[card].tflops, {"rollout": FRACTION, "optimize": FRACTION})
    found = traffic(plan, card, seconds, None, network)
    samples = config.rollout.groups * config.rollout.group_size / plan.processes
    return Row(
        name, plan.processes, plan.machines, config.rollout.groups, samples, iteration_seconds(found, seconds),
        {key: value for key, value in found.exposed.items() if value}, found.efficiency(sum(seconds.values())),
    )  # fmt: skip


def written(page: str, rows: list[Row], card: str, network: float) -> str:
    """The page with this table between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{PAGE.name} has no markers of the table"
    body = [tuple(row.cells()) for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEAD, ("---",) * len(HEAD), *body)]
    within = LINKS[card]
    note = (
        f"{card.upper()}, at {FRACTION:.0%} of its peak; {network:g} GB/s between machines, {within} GB/s within.\n"
        "Efficiency is the share of an iteration in which a GPU with the mean number of samples computes."
    )
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n\n{note}\n\n{END}{after}"
