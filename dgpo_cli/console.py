"""What a run looks like on a terminal (rich) and in a log file (plain lines)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, TimingRecord

__all__ = ["PlainProgress", "RichProgress", "evaluation_table", "make_progress"]

VERBS = ("roll out", "score", "optimise", "evaluate")


def make_progress(*, quiet: bool = False) -> PlainProgress:
    """Bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if not quiet and console.is_terminal:
        return RichProgress(console)
    return PlainProgress(quiet=quiet)


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def seconds(value: float) -> str:
    """Seconds as 4.1s, 3m05s or 2h10m."""
    if value < 60:
        return f"{value:.1f}s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def evaluation_table(records: list[EvaluationRecord], title: str | None = None) -> Table:
    """One column of scores with their intervals per reward, one row per task and one for all."""
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for record in records:
        table.add_column(record.reward, justify="right")
        table.add_column("95 % interval", justify="right")
    names = dict.fromkeys(name for record in records for name in record.groups)
    for name in names:
        row = [name]
        for record in records:
            group = record.groups.get(name)
            row += [number(group.value), f"{group.low:.3f} to {group.high:.3f}"] if group else ["-", ""]
        table.add_row(*row)
    if names:
        table.add_section()
    row = ["mean" if names else "all"]
    for record in records:
        row += [number(record.value), f"{record.low:.3f} to {record.high:.3f}"]
    table.add_row(*row, style="bold")
    return table


class PlainProgress:
    """One line an iteration, for logs and pipes; nothing but warnings when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.iterations = 0
        self.first = 0
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """A line on standard error, so that standard output stays free."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def started(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Say where and with what."""
        self.iterations, self.first, self.began = iterations, iteration, time.monotonic()
        verb = f"resuming after iteration {iteration} of" if iteration else "training"
        self.say(f"{verb} {directory} for {iterations} iterations on {facts['device']}")
        self.say(
            f"  {facts['trained parameters']:,} of {facts['all parameters']:,} parameters, "
            f"{facts['train prompts']} prompts to train on, {facts['held-out prompts']} held out"
        )

    def phase(self, verb: str, done: int, total: int) -> None:
        """Lines do not show progress within an iteration."""

    def iteration(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """One line with the four verbs, the reward and the time left."""
        spent = {verb: timing.verbs[verb].seconds for verb in ("roll_out", "score", "optimise") if verb in timing.verbs}
        left = (
            (time.monotonic() - self.began) / (metrics.iteration - self.first) * (self.iterations - metrics.iteration)
        )
        self.say(
            f"[{metrics.iteration}/{self.iterations}] "
            f"reward {number(metrics.reward.mean)} ± {number(metrics.reward.std)}  "
            f"kl {number(metrics.kl, 4)}  σ(S) {number(metrics.sigmoid, 2)}  "
            + "  ".join(f"{verb.replace('_', ' ')} {seconds(value)}" for verb, value in spent.items())
            + f"  left {seconds(left)}"
            + (f"  missing {metrics.missing_rewards}" if metrics.missing_rewards else "")
        )

    def evaluated(self, records: list[EvaluationRecord]) -> None:
        """A line a reward."""
        for r in records:
            spread = f", diversity {r.diversity:.3f}" if r.diversity is not None else ""
            self.say(
                f"  evaluation after iteration {r.iteration}: {r.reward} {r.value:.3f} "
                f"[{r.low:.3f}, {r.high:.3f}] over {r.n} prompts{spread}"
            )

    def note(self, text: str) -> None:
        """As it is."""
        self.say(text)

    def finished(self, outcome: str) -> None:
        """The outcome is the last line."""
        self.say(f"{outcome} in {seconds(time.monotonic() - self.began)}")


class RichProgress(PlainProgress):
    """A bar for the run, one for the verb at work, and a line for every iteration's reward."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.run = self.bars.add_task("iteration", total=None, info="")
        self.verb = self.bars.add_task("", total=None, info="")
        # Warnings must go above the bars, not through them.
        self.handler = _AboveBars(self)
        logging.getLogger().addHandler(self.handler)

    def say(self, text: str) -> None:
        """Above the bars."""
        self.console.print(text, highlight=False, markup=False)

    def started(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Show the bars."""
        super().started(directory, iteration, iterations, facts)
        self.bars.update(self.run, total=iterations, completed=iteration)
        self.bars.start()

    def phase(self, verb: str, done: int, total: int) -> None:
        """Move the lower bar."""
        self.bars.update(self.verb, description=verb, completed=done, total=total, info="")

    def iteration(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Move the upper bar."""
        super().iteration(metrics, timing)
        self.bars.update(self.run, completed=metrics.iteration, info=f"reward {number(metrics.reward.mean)}")

    def evaluated(self, records: list[EvaluationRecord]) -> None:
        """A table a time."""
        self.console.print(evaluation_table(records, f"after iteration {records[0].iteration}"))

    def finished(self, outcome: str) -> None:
        """Take the bars away."""
        self.bars.stop()
        logging.getLogger().removeHandler(self.handler)
        super().finished(outcome)


class _AboveBars(logging.Handler):
    """Sends log records to the console that draws the bars."""

    def __init__(self, progress: RichProgress) -> None:
        super().__init__(logging.WARNING)
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.progress.say(f"{record.levelname.lower()}: {record.getMessage()}")
