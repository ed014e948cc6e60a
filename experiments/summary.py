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
Change = tuple[Budget, frozenset[str]]
"""What a variant changes, as settings, and what it is compared at."""


@dataclass(frozen=True, slots=True)
class Line:
    """A change with the verdict on it. standard: the same change in the standard miniature, if it was run there."""

    experiment: Experiment
    contrast: Contrast
    budget: Budget
    seeds: int
    standard: Contrast | None

    @property
    def kind(self) -> Kind:
        """Which list it belongs to."""
        if self.contrast.verdict != "difference":
            return self.contrast.verdict
        return "better" if self.contrast.difference.value > 0 else "worse"

    @property
    def confirmed(self) -> bool:
        """Whether it makes a difference of the same sign in the standard miniature."""
        other = self.standard
        if other is None or {other.verdict, self.contrast.verdict} != {"difference"}:
            return False
        return other.difference.value * self.contrast.difference.value > 0

    def text(self) -> str:
        """Return `best against worst` instead of `dgpo`: −0.063 [...] at equal samples, with a link to the page."""
        found = self.contrast
        said = (
            f"[{self.experiment.key.upper()}]({self.experiment.key}.md): `{found.name}` instead of `{found.against}`: "
            f"{words.signed(found.difference)} at equal {self.budget}"
        )
        if self.standard is None:
            return said
        return f"{said}; in the standard miniature {_found(self.standard)} ({self.standard.difference.n} seeds)"


def _found(contrast: Contrast) -> str:
    """Return `−0.016 [−0.051, +0.019], undecided`."""
    verdict = "a difference" if contrast.verdict == "difference" else contrast.verdict
    return f"{words.signed(contrast.difference)}, {verdict}"


class Summary:
    """All records of a directory of pages."""

    def __init__(self, directory: Path) -> None:
        self.records: dict[str, Record] = {
            key: load(directory / key / "record.json")
            for key in EXPERIMENTS
            if (directory / key / "record.json").is_file()
        }

    def lines(self, kind: Kind) -> list[Line]:
        """Return the changes with a verdict of a kind in the fast miniature, the largest differences first."""
        found = [line for line in self._changes if line.kind == kind]
        return sorted(found, key=lambda line: -abs(line.contrast.difference.value))

    @cached_property
    def _changes(self) -> Sequence[Line]:
        """The changes of all experiments; of those with the same settings at the same budget, that with most seeds."""
        found: dict[Change, Line] = {}
        for key, record in self.records.items():
            experiment = EXPERIMENTS[key]
            if experiment.margin is None or experiment.summed is None:
                continue
            for contrast in Decisions(record.results).contrasts(experiment.summed, experiment.margin):
                change = (experiment.summed, frozenset(record.settings[contrast.name]))
                line = Line(experiment, contrast, experiment.summed, contrast.difference.n, self._standard.get(change))
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
        found = self._both_worlds("order", "samples")
        return agreement.verdict(found) if found else ""

    @cached_property
    def _standard(self) -> dict[Change, Contrast]:
        """The contrasts of the standard miniature, by the settings of the same variants in the fast one."""
        found: dict[Change, Contrast] = {}
        places: list[tuple[str, Budget]] = [("order", "samples"), ("confirm", "samples"), ("confirm", "seconds")]
        for key, budget in places:
            for pair in self._both_worlds(key, budget):
                settings = self.records[f"{key}-fast"].settings[pair.fast.name]
                found[budget, frozenset(settings)] = pair.standard
        return found

    def _both_worlds(self, key: str, budget: Budget) -> Sequence[agreement.Pair]:
        """Return the contrasts of an experiment and of the one beside it; empty if either has no record."""
        experiment = EXPERIMENTS[key]
        assert experiment.beside is not None
        assert experiment.margin is not None
        if not {key, experiment.beside} <= self.records.keys():
            return []
        standard, fast = (Decisions(self.records[name].results) for name in (key, experiment.beside))
        return agreement.pairs(standard, fast, experiment.margin, budget)

    def factors(self) -> Factors | None:
        """Return the factors of E4."""
        record = self.records.get("e4")
        return None if record is None else Factors(record.results, record.targets, record.passes)

    @property
    def reversed(self) -> Sequence[Line]:
        """What is better in the fast miniature and makes a difference of the other sign in the standard one."""
        better = self.lines("better")
        return [one for one in better if one.standard and one.standard.verdict == "difference" and not one.confirmed]

    def gates(self) -> Sequence[str]:
        """Return what E13 found, a sentence for each variant."""
        record, margin = self.records.get("e13"), EXPERIMENTS["e13"].margin or 0.0
        found = [] if record is None else Decisions(record.results).contrasts("samples", margin)
        return [f"`{one.name}` instead of `{one.against}`: {_found(one)}" for one in found]

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
