"""Progress of a run on a terminal (rich) and in a log file (plain lines)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from dgpo_cli.log import OneLine
from dgpo_cli.working import is_first, working
from dgpo_core.system.units import number, seconds
from dgpo_core.training.callbacks import Callback
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_core.training.evaluation import Evaluation
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, OutcomeRecord, PromptScores, TimingRecord

__all__ = ["Loading", "PlainProgress", "RichProgress", "bar", "loading", "make_progress", "print_evaluation"]

PHASES = ("rollout", "score", "compute_advantages", "optimize")
IMPORTANCE = ("reward", "missing", "optimize", "rollout", "score", "compute_advantages", "kl", "sigmoid")
"""Fields that a narrow terminal keeps, most important first. The bar shows the remaining time."""

TERMS = (
    "  reward: mean ± std of the samples; kl: squared distance to the base model;\n"
    "  σ(S): 0.5 at first, lower as better samples are preferred (docs/glossary.md)"
)
"""What the fields of an iteration's line mean, for who sees them for the first time."""


def make_progress(*, quiet: bool = False) -> PlainProgress:
    """Return progress bars for a terminal, plain lines otherwise."""
    console = Console(stderr=True)
    if not quiet and console.is_terminal:
        return RichProgress(console)
    return PlainProgress(quiet=quiet)


def loading(what: str) -> None:
    """Print on a terminal that `what` is being loaded, which may take minutes; once for all processes."""
    console = Console(stderr=True)
    if console.is_terminal and is_first():
        console.print(f"loading {what} ...", highlight=False, markup=False, soft_wrap=True)


class Loading(Callback):
    """Tells without a terminal that a run is still being loaded, until it starts; `loading` tells it on one."""

    def __init__(self, what: str, *, shown: bool) -> None:
        self._shown = ExitStack()
        self._shown.enter_context(working(f"loading {what}", shown=shown and not Console(stderr=True).is_terminal))

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Tell nothing more."""
        self.close()

    def close(self) -> None:
        """Tell nothing more. May be called repeatedly."""
        self._shown.close()


@contextmanager
def bar(description: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Context manager that shows how much is done (`working`); gives a function of what is finished and the total."""
    with working(description, shown=shown) as work:
        yield work.count


def print_evaluation(console: Console, records: Sequence[EvaluationRecord]) -> None:
    """Print one table if all rewards fit side by side, else one per reward, and a line of media statistics."""
    rewards = [record for record in records if record.role != "statistic"]
    table = _table(rewards)
    wide = Measurement.get(console, console.options.update(max_width=10_000), table).maximum > console.width
    for each in [_table([record]) for record in rewards] if wide else [table]:
        console.print(each)
    console.print(statistics_line(records), highlight=False, soft_wrap=True)


def statistics_line(records: Sequence[EvaluationRecord]) -> str:
    """Return the media statistics of an evaluation as a line: diversity 0.231, saturation 0.402, ..."""
    found = [f"{r.reward.replace('_', ' ')} {number(r.value)}" for r in records if r.role == "statistic"]
    return f"image statistics: {', '.join(found)}"


def _table(records: Sequence[EvaluationRecord]) -> Table:
    """Build a table with a column of scores and intervals per reward, a row per task and source, and a total."""
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
            group = record.sources.get(name)
            row += [number(group.value), f"{group.low:.3f} to {group.high:.3f}"] if group else ["-", ""]
        table.add_row(*row)
    if names or sources:
        table.add_section()
    row = ["mean" if names else "all"]
    for record in records:
        row += [number(record.value), f"{record.low:.3f} to {record.high:.3f}"]
    table.add_row(*row, style="bold")
    return table


class PlainProgress(Callback):
    """Print one line per iteration, for logs and pipes; only warnings if quiet."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.iterations = 0
        self.first = 0
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line to standard error, which keeps standard output free, unless quiet."""
        if not self.quiet:
            self.write(text)

    def write(self, text: str) -> None:
        """Print a line to standard error."""
        print(text, file=sys.stderr, flush=True)  # noqa: T201

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Print the run directory, the device, and the numbers of parameters and prompts."""
        self.iterations, self.first, self.began = iterations, iteration, time.monotonic()
        phase = f"resuming after iteration {iteration} of" if iteration else "training"
        self.say(f"{phase} {clean(str(directory))} for {iterations} iterations on {facts['device']}")
        self.say(
            f"  {facts['trained parameters']:,} of {facts['all parameters']:,} parameters, "
            f"{facts['train prompts']} prompts to train on, {facts['held-out prompts']} held out"
        )
        self.say(TERMS)

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Print nothing within an iteration."""

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Print one line with the reward, the phases and the remaining time."""
        self.say(self.line(metrics, self.parts(metrics, timing)))

    def line(self, metrics: MetricsRecord, parts: Mapping[str, str]) -> str:
        """Join the fields after the number of the iteration."""
        return f"[{metrics.iteration}/{self.iterations}] " + "  ".join(parts.values())

    def parts(self, metrics: MetricsRecord, timing: TimingRecord) -> dict[str, str]:
        """Return the fields of an iteration's line, in order."""
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
        """Print a line per reward, and one of media statistics."""
        records = evaluation.records
        for r in (record for record in records if record.role != "statistic"):
            missing = f", {r.missing} samples missing" if r.missing else ""
            self.say(
                f"  evaluation after iteration {r.iteration}: {r.reward} {r.value:.3f} "
                f"[{r.low:.3f}, {r.high:.3f}] over {r.n} prompts{missing}"
            )
        self.say(f"  {statistics_line(records)}")

    def on_message(self, text: str) -> None:
        """Print the message."""
        self.say(text)

    def on_warning(self, text: str) -> None:
        """Print the warning, even if quiet."""
        self.write(text)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Print the outcome as the last line; a run that ended at --max-iterations is paused, as `dgpo watch` says."""
        how = f"{outcome.outcome} after"
        if outcome.outcome == "finished":
            how = "paused after" if outcome.ended_by is None else "finished in"
        self.say(f"{how} {seconds(time.monotonic() - self.began)}")


class RichProgress(PlainProgress):
    """Show a bar for the run, a bar for the current phase, and a line per iteration."""

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
        """Print above the bars; the terminal wraps long lines, so that paths can be copied."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Show the bars."""
        super().on_start(directory, iteration, iterations, facts)
        self.bars.update(self.run, total=iterations, completed=iteration)
        self.bars.start()
        logging.getLogger().addHandler(self.handler)  # warnings must go above the bars, not through them

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Update the bar of the phase."""
        self.bars.update(self.phase, description=phase.replace("_", " "), completed=done, total=total, info="")

    def line(self, metrics: MetricsRecord, parts: Mapping[str, str]) -> str:
        """Join the fields that fit the terminal."""
        kept: dict[str, str] = {}
        for name in (name for name in IMPORTANCE if name in parts):
            candidate = {known: parts[known] for known in parts if known in kept or known == name}
            if cell_len(super().line(metrics, candidate)) <= self.console.width:
                kept = candidate
        return super().line(metrics, kept)

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Update the bar of the run."""
        super().on_iteration_end(metrics, timing)
        self.bars.update(self.run, completed=metrics.iteration, info=f"reward {number(metrics.reward.mean)}")

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """Print the evaluation as a table."""
        records = evaluation.records
        self.say(f"evaluation after iteration {records[0].iteration}, {records[0].n} prompts")
        print_evaluation(self.console, records)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Remove the bars."""
        self.bars.stop()
        logging.getLogger().removeHandler(self.handler)
        super().on_end(outcome)


class _AboveBars(logging.Handler):
    """Logging handler that prints records above the bars."""

    def __init__(self, progress: RichProgress) -> None:
        super().__init__(logging.WARNING)
        self.progress = progress
        self.setFormatter(OneLine())

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record as one line."""
        self.progress.say(self.format(record))
