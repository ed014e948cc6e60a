"""Print a diagnosis to a terminal, or convert it to JSON data."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from dgpo_lab.doctoring.diagnosis import Diagnosis
from dgpo_lab.doctoring.findings import SEVERITIES, Finding

__all__ = ["as_data", "print_diagnosis"]

STYLES = {"problem": "bold red", "warning": "bold yellow", "note": "bold cyan"}
WIDEST = 100
"""Maximum line width in columns; longer lines are hard to read."""
NARROWEST = 20
"""Minimum line width, because some terminals report 0 columns."""
LABEL_WIDTH = len("evidence")


def print_diagnosis(console: Console, diagnosis: Diagnosis) -> None:
    """Print the findings, the most severe first, then what is fine, what is too early to judge, and what to try."""
    page = _Page(console)
    page.line(headline(diagnosis), "bold")
    for finding in diagnosis.findings:
        page.line()
        page.title(finding)
        page.rows(_once(_lines(finding)), LABEL_WIDTH)
    fine = [(e.subject, e.fine) for e in diagnosis.examinations if e.fine]
    unknown = [(e.subject, e.open) for e in diagnosis.examinations if e.open]
    for title, lines in (("fine", fine), ("too early to tell", unknown)):
        if lines:
            page.line()
            page.line(title, "bold")
            page.rows(lines, max(len(subject) for subject, _ in lines))
    page.line()
    page.line(summary(diagnosis), "bold")
    command = trial(diagnosis)
    if command:
        page.line("to try the changes of the first finding:")
        page.line(f"  {command}")  # one line, so that it can be copied


def headline(diagnosis: Diagnosis) -> str:
    """Return the first line: the run, its progress and its state."""
    run = diagnosis.run
    evaluations = len({e.iteration for each in run.data.evaluations.values() for e in each})
    return (
        f"{run.data.path}: {run.data.done} of {run.config.run.iterations} iterations, {run.state}; "
        f"{evaluations} {'evaluation' if evaluations == 1 else 'evaluations'}"
    )


def summary(diagnosis: Diagnosis) -> str:
    """Return the counts by severity: 1 problem, no warnings, 2 notes."""

    def counted(number: int, noun: str) -> str:
        return f"{number or 'no'} {noun}" + ("" if number == 1 else "s")

    return ", ".join(counted(diagnosis.count(severity), severity) for severity in SEVERITIES)


def trial(diagnosis: Diagnosis) -> str:
    """Return a command that trains a new run with the changes of the first problem or warning that has any; else "".

    A run's config.yaml is itself a run file.
    """
    changed = [f for f in diagnosis.findings if f.changes and f.severity != "note"]
    if not changed:
        return ""
    run = diagnosis.run
    settings = [f"run.name={run.data.name[:90]}-2", *(change.argument for change in changed[0].changes)]
    words = ["dgpo", "train", str(run.data.path / "config.yaml")]
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])


def as_data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Convert a diagnosis to the data that `--json` prints."""
    run = diagnosis.run
    return {
        "run": str(run.data.path),
        "name": run.data.name,
        "iterations": run.data.done,
        "of": run.config.run.iterations,
        "state": run.state,
        "findings": [
            {
                "id": finding.id,
                "severity": finding.severity,
                "title": finding.title,
                "evidence": list(finding.evidence),
                "changes": [
                    {"key": c.key, "present": c.present, "suggested": c.suggested, "set": c.argument}
                    for c in finding.changes
                ],
                "advice": list(finding.advice),
                "why": finding.why,
            }
            for finding in diagnosis.findings
        ],
        "fine": [{"subject": e.subject, "text": e.fine} for e in diagnosis.examinations if e.fine],
        "too_early": [{"subject": e.subject, "text": e.open} for e in diagnosis.examinations if e.open],
    }


def _lines(finding: Finding) -> list[tuple[str, str]]:
    """Return (label, text) of each line below a finding's title."""
    return [
        *(("evidence", line) for line in finding.evidence),
        ("why", finding.why),
        *(("change", str(change)) for change in finding.changes),
        *(("or" if line.startswith("or ") else "do", line.removeprefix("or ")) for line in finding.advice),
    ]


def _once(lines: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Blank out labels that repeat the one above."""
    shown: list[tuple[str, str]] = []
    last = ""
    for label, line in lines:
        shown.append(("" if label == last else label, line))
        last = label
    return shown


class _Page:
    """Writes wrapped lines to a console. A rich table would pad them with trailing spaces."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = max(NARROWEST, min(console.width, WIDEST))

    def line(self, text: str | Text = "", style: str = "") -> None:
        """Print a line without wrapping it."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def title(self, finding: Finding) -> None:
        """Print the severity, title and id of a finding."""
        severity = finding.severity.upper()
        lines = self._wrap(f"{severity}  {finding.title}  [{finding.id}]", "  ")
        first = Text(lines[0], "bold")
        first.stylize(STYLES[finding.severity], 0, len(severity))
        self.line(first)
        for line in lines[1:]:
            self.line(line, "bold")

    def rows(self, rows: Iterable[tuple[str, str]], wide: int) -> None:
        """Print labels and texts in two columns."""
        for label, text in rows:
            start = f"  {label:<{wide}}  "
            for line in self._wrap(start + text, " " * len(start)):
                self.line(line)

    def _wrap(self, text: str, indent: str) -> list[str]:
        return textwrap.wrap(
            text, self.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, replace_whitespace=False,
        )  # fmt: skip
