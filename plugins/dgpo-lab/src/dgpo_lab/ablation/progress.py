"""Progress messages of an ablation: a line for each cell that starts or ends, and a progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dgpo_core.system.reading import LARGEST_LOG, open_file
from dgpo_core.system.units import seconds
from dgpo_lab.ablation.directory import State
from dgpo_lab.ablation.plan import Cell, Plan

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Watcher", "make_watcher"]


class Watcher:
    """Counts cells and prints progress to stderr."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.states: dict[str, State] = {}
        self.running: dict[str, Cell] = {}
        self.share = 0.0  # of all iterations, when this process began
        self.clock = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def started(self, plan: Plan, states: Mapping[str, State]) -> None:
        """Print the number of cells."""
        self.states, self.clock = dict(states), time.monotonic()
        self.share = sum(map(_share, plan.cells())) / len(states)
        done = self._count("finished")
        phase = f"continuing, {done} of {len(states)} cells are finished" if self.share else f"{len(states)} cells"
        self.say(f"ablation {plan.path}: {len(plan.variants)} variants, seeds {_listed(plan.ablation.seeds)}; {phase}")

    def began(self, cell: Cell, *, resume: bool) -> None:
        """Report that a cell has started."""
        self.running[cell.label] = cell
        self.say(f"  {cell.label}: {'resumed' if resume else 'started'}")

    def ended(self, cell: Cell, state: State) -> None:
        """Report that the process of a cell has ended."""
        self.running.pop(cell.label, None)
        self.states[cell.label] = state
        detail = f": {state.message}; its log is {cell.path / 'train.log'}" if state.status == "failed" else ""
        self.say(f"[{', '.join(filter(None, [self.summary(), self.left()]))}] {cell.label} {state.status}{detail}")

    def tick(self) -> None:
        """Update the progress bar, at most once per second because this reads the cells' logs."""

    def close(self) -> None:
        """Close the progress bar after the last cell."""

    def summary(self) -> str:
        """3 of 15 finished, 2 running, 1 failed."""
        parts = [f"{self._count('finished')} of {len(self.states)} finished"]
        parts += [f"{len(self.running)} running"] if self.running else []
        failed = self._count("failed")
        return ", ".join([*parts, f"{failed} failed"] if failed else parts)

    def done(self) -> float:
        """Share of all iterations; a failed cell will not do any more in this process."""
        ended = self._count("finished") + self._count("failed")
        return (ended + sum(map(_share, self.running.values()))) / max(1, len(self.states))

    def left(self) -> str:
        """Time left, from what was done in this process's time."""
        done = self.done()
        gained, spent = done - self.share, time.monotonic() - self.clock
        if not self.running and done >= 1:
            return ""
        return f"left {seconds(spent / gained * max(0.0, 1 - done))}" if gained > 0.001 and spent > 1 else ""

    def _count(self, status: str) -> int:
        return sum(state.status == status for state in self.states.values())


class BarWatcher(Watcher):
    """A watcher with a progress bar."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        super().__init__()
        columns = (TextColumn("cells"), BarColumn(bar_width=24), TextColumn("{task.fields[info]}"), TimeElapsedColumn())
        self.bars = Progress(*columns, console=console, transient=True)
        self.bar = self.bars.add_task("cells", total=1.0, info="")
        self.looked = 0.0  # when the cells' logs were read

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, plan: Plan, states: Mapping[str, State]) -> None:
        super().started(plan, states)
        self.bars.start()

    def tick(self) -> None:
        if time.monotonic() - self.looked >= 1:
            self.looked = time.monotonic()
            said = "  ".join(filter(None, [self.summary(), self.left()]))
            self.bars.update(self.bar, completed=self.done(), info=said)

    def close(self) -> None:
        self.bars.stop()


def make_watcher(*, quiet: bool = False) -> Watcher:
    """Return a watcher with a progress bar on a terminal, or one that prints lines."""
    from rich.console import Console

    console = Console(stderr=True)
    return BarWatcher(console) if console.is_terminal and not quiet else Watcher(quiet=quiet)


def _share(cell: Cell) -> float:
    """Share of a cell's iterations that are logged; one that ends earlier jumps to its end."""
    try:
        with open_file(cell.path / "metrics.jsonl", LARGEST_LOG) as handle:
            return min(1.0, sum(1 for _ in handle) / cell.config.run.iterations)
    except OSError:
        return 0.0


def _listed(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
