"""Write the page of the signal to noise of gradients from its record."""

from __future__ import annotations

from pathlib import Path

from dgpo_lab.ablation import words
from dgpo_lab.ablation.statistics import Interval
from experiments.catalog import SIGNAL
from experiments.rendering import write
from experiments.signal.arms import CANDIDATES, CHEAP, PLAIN, THRESHOLD, by_steps
from experiments.signal.measure import BASE_MODEL
from experiments.signal.record import Record, Row, load

__all__ = ["TITLE", "decision", "headline", "write_page"]

TITLE = "Signal to noise of a group's gradient"


def write_page(directory: Path) -> Path:
    """Write signal.md next to the directory `signal`, which contains the record."""
    record = load(directory / SIGNAL / "record.json")
    return write(
        directory / f"{SIGNAL}.md", record=record, shown=_shown, measured=record.measured, plain=PLAIN,
        candidates=CANDIDATES, cheap=CHEAP, threshold=THRESHOLD, decision=decision(record),
        clear={weights: clear(list(rows.values())) for weights, rows in record.rows.items()},
        full=by_steps(record.measured.steps),
    )  # fmt: skip


def _shown(found: Interval) -> str:
    return words.interval(found, 2)


def _best(record: Record) -> Row:
    """Return the arm of the rule: of those that rank by cheap steps, that with the highest ratio at the base model."""
    return max((record.rows[BASE_MODEL][by_steps(steps)] for steps in CHEAP), key=lambda row: row.ratio.value)


def decision(record: Record) -> str:
    """Return what follows from the rule, and whether the interval is on the same side of the threshold."""
    ratio = _best(record).ratio
    met = ratio.value > THRESHOLD
    follows = "the engine gets a rollout plan" if met else "the engine gets no rollout plan"
    side = f"{'above' if met else 'not above'} {THRESHOLD}"
    if ratio.low is None or ratio.high is None:
        certainty = "there is no interval"
    elif ratio.low <= THRESHOLD < ratio.high:
        certainty = f"the interval contains {THRESHOLD}, so the estimate decides"
    else:
        certainty = "so is the whole interval"
    return f"`{_best(record).name}` has {_shown(ratio)} times the signal to noise, {side} ({certainty}): {follows}."


def clear(rows: list[Row]) -> list[str]:
    """Return a sentence for each arm whose interval of the ratio excludes 1."""
    found = []
    for row in rows:
        low, high = row.ratio.low, row.ratio.high
        if low is not None and high is not None and not low <= 1 <= high:
            more = "more" if low > 1 else "less"
            found.append(
                f"`{row.name}` has {more} signal to noise than the plain group: {_shown(row.ratio)} times, "
                f"per pass {_shown(row.per_pass)} times."
            )
    return found


def headline(directory: Path) -> str:
    """Return the decision, for the index of experiments."""
    return decision(load(directory / SIGNAL / "record.json"))
