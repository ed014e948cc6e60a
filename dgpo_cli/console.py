"""What a run looks like on a terminal (rich) and in a log file (plain lines)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dgpo_cli.log import OneLine
from dgpo_core.system.units import number, seconds
from dgpo_core.training.callbacks import Callback
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_core.training.evaluation import Evaluation
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord, PromptScores, TimingRecord

__all__ = ["PlainProgress", "RichProgress", "make_progress", "print_evaluation"]

PHASES = ("rollout", "score", "compute_advantages", "optimize")
IMPORTANCE = ("reward", "missing", "optimize", "rollout", "score", "compute_advantages", "kl", "sigmoid")
"""What a line of a narrow terminal keeps, in this order. The time left is shown by the bar."""


def make_progress(*, quiet: bool = False) -> PlainProgress:
    """Bars on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if not quiet and console.is_terminal:
        return RichProgress(console)
    return PlainProgress(quiet=quiet)


def print_evaluation(console: Console, records: Sequence[EvaluationRecord]) -> None:
    """One table if all rewards fit side by side, else one for each; then a line on the media themselves."""
    rewards = [record for record in records if record.role != "statistic"]
    table = _table(rewards)
    wide = Measurement.get(console, console.options.update(max_width=10_000), table).maximum > console.width
    for each in [_table([record]) for record in rewards] if wide else [table]:
        console.print(each)
    console.print(statistics_line(records), highlight=False, soft_wrap=True)


def statistics_line(records: Sequence[EvaluationRecord]) -> str:
    """What the media of an evaluation look like: diversity 0.231, saturation 0.402, ..."""
    found = [f"{r.reward.replace('_', ' ')} {number(r.value)}" for r in records if r.role == "statistic"]
    return f"image statistics: {', '.join(found)}"


def _table(records: Sequence[EvaluationRecord]) -> Table:
    """One column of scores with their intervals per reward, one row per task and per source, and one for all."""
    table = Table()
    table.add_column("task")
    for record in records:
        table.add_column(record.reward, justify="right", no_wrap=True)
        table.add_column("95 % interval", justify="right", no_wrap=True)
    names = dict.fromkeys(name for record in records for name in record.groups)
    for name in names:
        row = [name]
        for record in records:
            group = record.groups.get(name)
            row += [number(group.value), f"{group.low:.3f} to {group.high:.3f}"] if group else ["-", ""]
        table.add_row(*row)
    sources = dict.fromkeys(name for record in records for name in record.sources)
    for name in sources:
        row = [f"source {name}"]
        for record in records:
            one = record.sources.get(name)
            row += [number(one.value), f"{one.low:.3f} to {one.high:.3f}"] if one else ["-", ""]
        table.add_row(*row)
    if names or sources:
        table.add_section()
    row = ["mean" if names else "all"]
    for record in records:
        row += [number(record.value), f"{record.low:.3f} to {record.high:.3f}"]
    table.add_row(*row, style="bold")
    return table


class PlainProgress(Callback):
    """One line an iteration, for logs and pipes; nothing but warnings when quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.iterations = 0
        self.first = 0
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """A line on standard error, so that standard output stays free."""
        if not self.quiet:
            self.write(text)

    def write(self, text: str) -> None:
        """The line itself."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Say where and with what."""
        self.iterations, self.first, self.began = iterations, iteration, time.monotonic()
        phase = f"resuming after iteration {iteration} of" if iteration else "training"
        self.say(f"{phase} {clean(str(directory))} for {iterations} iterations on {facts['device']}")
        self.say(
            f"  {facts['trained parameters']:,} of {facts['all parameters']:,} parameters, "
            f"{facts['train prompts']} prompts to train on, {facts['held-out prompts']} held out"
        )

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Lines do not show progress within an iteration."""

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """One line with the four phases, the reward and the time left."""
        self.say(self.line(metrics, self.parts(metrics, timing)))

    def line(self, metrics: MetricsRecord, parts: Mapping[str, str]) -> str:
        """The parts after the iteration's number."""
        return f"[{metrics.iteration}/{self.iterations}] " + "  ".join(parts.values())

    def parts(self, metrics: MetricsRecord, timing: TimingRecord) -> dict[str, str]:
        """What there is to say of an iteration, in the order of the line."""
        rate = (time.monotonic() - self.began) / (metrics.iteration - self.first)
        spent = {phase: timing.phases[phase].seconds for phase in PHASES if phase in timing.phases}
        if spent.get("compute_advantages", 1.0) < 0.05:  # would be shown as 0.0s
            del spent["compute_advantages"]
        return {
            "reward": f"reward {number(metrics.reward.mean)} ± {number(metrics.reward.std)}",
            "kl": f"kl {number(metrics.kl, 4)}",
            "sigmoid": f"σ(S) {number(metrics.sigmoid, 2)}",
            **{phase: f"{phase.replace('_', ' ')} {seconds(value)}" for phase, value in spent.items()},
            "left": f"left {seconds(rate * (self.iterations - metrics.iteration))}",
            **({"missing": f"missing {metrics.missing_rewards}"} if metrics.missing_rewards else {}),
        }

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """A line a reward, and one on the media."""
        records = evaluation.records
        for r in (record for record in records if record.role != "statistic"):
            missing = f", {r.missing} samples missing" if r.missing else ""
            self.say(
                f"  evaluation after iteration {r.iteration}: {r.reward} {r.value:.3f} "
                f"[{r.low:.3f}, {r.high:.3f}] over {r.n} prompts{missing}"
            )
        self.say(f"  {statistics_line(records)}")

    def on_message(self, text: str) -> None:
        """As it is."""
        self.say(text)

    def on_warning(self, text: str) -> None:
        """As it is, also when quiet."""
        self.write(text)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """The outcome is the last line."""
        self.say(f"{outcome.outcome} in {seconds(time.monotonic() - self.began)}")


class RichProgress(PlainProgress):
    """A bar for the run, one for the phase at work, and a line for every iteration's reward."""

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
        self.phase = self.bars.add_task("", total=None, info="")
        self.handler = _AboveBars(self)

    def write(self, text: str) -> None:
        """Above the bars; a long line is left to the terminal, so that a path in it can be copied."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Show the bars."""
        super().on_start(directory, iteration, iterations, facts)
        self.bars.update(self.run, total=iterations, completed=iteration)
        self.bars.start()
        logging.getLogger().addHandler(self.handler)  # warnings must go above the bars, not through them

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Move the lower bar."""
        self.bars.update(self.phase, description=phase.replace("_", " "), completed=done, total=total, info="")

    def line(self, metrics: MetricsRecord, parts: Mapping[str, str]) -> str:
        """The parts that fit."""
        kept: dict[str, str] = {}
        for name in (name for name in IMPORTANCE if name in parts):
            wanted = {known: parts[known] for known in parts if known in kept or known == name}
            if cell_len(super().line(metrics, wanted)) <= self.console.width:
                kept = wanted
        return super().line(metrics, kept)

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Move the upper bar."""
        super().on_iteration_end(metrics, timing)
        self.bars.update(self.run, completed=metrics.iteration, info=f"reward {number(metrics.reward.mean)}")

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """A table a time."""
        records = evaluation.records
        self.say(f"evaluation after iteration {records[0].iteration}, {records[0].n} prompts")
        print_evaluation(self.console, records)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Take the bars away."""
        self.bars.stop()
        logging.getLogger().removeHandler(self.handler)
        super().on_end(outcome)


class _AboveBars(logging.Handler):
    """Sends log records to the console that draws the bars."""

    def __init__(self, progress: RichProgress) -> None:
        super().__init__(logging.WARNING)
        self.progress = progress
        self.setFormatter(OneLine())

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.progress.say(self.format(record))
