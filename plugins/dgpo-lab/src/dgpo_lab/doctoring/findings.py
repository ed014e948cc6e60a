"""What an examination says: findings with evidence and the setting to change, or that there is nothing to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["SEVERITIES", "Change", "Examination", "Finding", "Severity", "figure", "percent", "written"]

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")
"""Worst first. A problem costs the run its purpose, a warning costs time or quality, a note is worth knowing."""


@dataclass(frozen=True, slots=True)
class Change:
    """A setting of the run file: its present value, and one to try; both as YAML values."""

    key: str
    present: Any
    suggested: Any

    @property
    def argument(self) -> str:
        """What goes behind `--set`."""
        return f"{self.key}={written(self.suggested)}"

    def __str__(self) -> str:
        return f"{self.key}: {written(self.present)} -> {written(self.suggested)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One sign.

    id: a name that stays the same; evidence: numbers and where they stand; changes: settings to try, the likeliest
    first; advice: what to do besides; why: the failure that this is a sign of, and who described it.
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
    """Of one subject: what was found; else `fine` says what was looked at, or `open` why nothing can be said yet. All
    are empty where the subject does not concern the run."""

    subject: str
    findings: Sequence[Finding] = ()
    fine: str = ""
    open: str = ""


def written(value: Any) -> str:
    """A value as it stands in a run file, on one line."""
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
    """Three significant digits: 0.0123, 4.56, 1.2e-07."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """37 %, with a decimal below 10 %."""
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.1 else f"{share:.0%}".replace("%", " %")
