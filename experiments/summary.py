"""What to use, what not, and how sure: one page from the records of all experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from dgpo_lab.ablation import words
from experiments import agreement
from experiments.catalog import EXPERIMENTS, Experiment
from experiments.decisions import Decisions
from experiments.factors import Factors
from experiments.hacking import Hacking
from experiments.record import Record, load
from experiments.rendering import write
from experiments.statistics.contrasts import Contrast
from experiments.statistics.summaries import Budget

__all__ = ["SUMMARY", "Line", "Summary", "write_summary"]

SUMMARY = "summary"
Kind = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True, slots=True)
class Line:
    """A change with the verdict on it."""

    experiment: Experiment
    contrast: Contrast
    budget: Budget
    seeds: int

    @property
    def kind(self) -> Kind:
        """Which list it belongs to."""
        if self.contrast.verdict != "difference":
            return self.contrast.verdict
        return "better" if self.contrast.difference.value > 0 else "worse"

    def text(self) -> str:
        """Return `best against worst` instead of `dgpo`: −0.063 [...] at equal samples, with a link to the page."""
        found = self.contrast
        return (
            f"[{self.experiment.key.upper()}]({self.experiment.key}.md): `{found.name}` instead of `{found.against}`: "
            f"{words.signed(found.difference)} at equal {self.budget}"
        )


class Summary:
    """All records of a directory of pages."""

    def __init__(self, directory: Path) -> None:
        self.records: dict[str, Record] = {
            key: load(directory / key / "record.json")
            for key in EXPERIMENTS
            if (directory / key / "record.json").is_file()
        }

    def lines(self, kind: Kind) -> Sequence[Line]:
        """Return the changes with a verdict of a kind, the largest differences first."""
        found = [line for line in self._changes if line.kind == kind]
        return sorted(found, key=lambda line: -abs(line.contrast.difference.value))

    @cached_property
    def _changes(self) -> Sequence[Line]:
        """The changes of all experiments; of those with the same settings at the same budget, that with most seeds."""
        found: dict[tuple[Budget, frozenset[str]], Line] = {}
        for key, record in self.records.items():
            experiment = EXPERIMENTS[key]
            if experiment.margin is None or experiment.summed is None:
                continue
            for contrast in Decisions(record.results).contrasts(experiment.summed, experiment.margin):
                line = Line(experiment, contrast, experiment.summed, contrast.difference.n)
                change = (line.budget, frozenset(record.settings[contrast.name]))
                if change not in found or found[change].seeds < line.seeds:
                    found[change] = line
        return list(found.values())

    @property
    def known(self) -> bool:
        """Whether there is any change with a verdict."""
        return bool(self._changes)

    @property
    def seeds(self) -> tuple[int, int]:
        """The smallest and the largest number of seeds of a change."""
        found = [line.seeds for line in self._changes]
        return min(found), max(found)

    @property
    def half_widths(self) -> tuple[float, float]:
        """The smallest and the largest half-width of the intervals of changes."""
        found = [line.contrast.half_width for line in self._changes]
        return min(found), max(found)

    @property
    def alike(self) -> str:
        """Return whether the fast miniature orders methods like the standard one; empty without its experiment."""
        if not {"order", "order-fast"} <= self.records.keys():
            return ""
        standard, fast = (Decisions(self.records[key].results) for key in ("order", "order-fast"))
        return agreement.verdict(agreement.pairs(standard, fast, EXPERIMENTS["order"].margin or 0.0))

    def factors(self) -> Factors | None:
        """Return the factors of E4."""
        record = self.records.get("e4")
        return None if record is None else Factors(record.results, record.targets, record.passes)

    def hacking(self) -> Hacking | None:
        """Return what E11 found."""
        record = self.records.get("e11")
        return None if record is None else Hacking(record.results)


def write_summary(directory: Path) -> Path:
    """Write summary.md, or remove it if no record of the directory has a rule for verdicts."""
    path = directory / f"{SUMMARY}.md"
    summary = Summary(directory)
    if not summary.known:
        path.unlink(missing_ok=True)
        return path
    return write(path, summary=summary)
