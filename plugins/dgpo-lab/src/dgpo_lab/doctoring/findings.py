"""The results of the doctor's examinations: findings with their evidence and the settings to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["SEVERITIES", "Change", "Examination", "Finding", "Severity", "figure", "percent", "written"]

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")
"""Worst first. A problem defeats the purpose of the run, a warning costs time or quality, a note is informational."""


@dataclass(frozen=True, slots=True)
class Change:
    """A suggested change of one setting of the run file: its present value and the value to try, as YAML values."""

    key: str
    present: Any
    suggested: Any

    @property
    def argument(self) -> str:
        """The argument of `--set`."""
        return f"{self.key}={written(self.suggested)}"

    def __str__(self) -> str:
        return f"{self.key}: {written(self.present)} -> {written(self.suggested)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A sign of failure that was found in a run.

    id: a stable name; evidence: the measured numbers and their sources; changes: settings to try, the most likely
    remedy first; advice: further steps; why: the failure that the sign points to, with its source.
    """

    id: str
    severity: Severity
    title: str
    evidence: Sequence[str]
    why: str
    changes: Sequence[Change] = ()
    advice: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Examination:
    """The result for one subject: its findings; without findings, either `fine` (what was checked) or `open` (why the
    subject cannot be judged yet). All three are empty if the subject does not apply to the run."""

    subject: str
    findings: Sequence[Finding] = ()
    fine: str = ""
    open: str = ""


def written(value: Any) -> str:
    """Format a value as in a run file, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def figure(value: float) -> str:
    """Format a number with three significant digits: 0.0123, 4.56, 1.2e-07."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Format a fraction as a percentage, with one decimal below 10 %: 37 %, 4.3 %."""
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.1 else f"{share:.0%}".replace("%", " %")
