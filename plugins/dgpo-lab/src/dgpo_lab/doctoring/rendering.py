"""A diagnosis on a terminal, and as data."""

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
"""Columns beyond which lines are no longer easy to read."""
NARROWEST = 20
"""Of a terminal that says 0, as some do."""


def print_diagnosis(console: Console, found: Diagnosis) -> None:
    """The findings, the worst first; then what is fine, what cannot be told yet, and what to try."""
    page = _Page(console)
    page.line(headline(found), "bold")
    for finding in found.findings:
        page.line()
        page.title(finding)
        page.rows(_once(_lines(finding)), len("change"))
    fine = [(e.subject, e.fine) for e in found.examinations if e.fine]
    unknown = [(e.subject, e.open) for e in found.examinations if e.open]
    for title, lines in (("fine", fine), ("too early to tell", unknown)):
        if lines:
            page.line()
            page.line(title, "bold")
            page.rows(lines, max(len(subject) for subject, _ in lines))
    page.line()
    page.line(summary(found), "bold")
    attempt = trial(found)
    if attempt:
        page.line("try the first:")
        page.line(f"  {attempt}")  # in one line, to be copied


def headline(found: Diagnosis) -> str:
    """Which run, how far, and how it is."""
    run = found.run
    evaluations = len({e.iteration for each in run.data.evaluations.values() for e in each})
    state = "going on" if run.state == "running" else run.state
    return (
        f"{run.data.path}: {run.data.done} of {run.config.run.iterations} iterations, {state}; "
        f"{evaluations} {'evaluation' if evaluations == 1 else 'evaluations'}"
    )


def summary(found: Diagnosis) -> str:
    """1 problem, no warning, 2 notes."""

    def counted(number: int, noun: str) -> str:
        return f"{number or 'no'} {noun}" + ("s" if number > 1 else "")

    return ", ".join(counted(found.count(severity), severity) for severity in SEVERITIES)


def trial(found: Diagnosis) -> str:
    """A command that trains anew as the first problem or warning with settings suggests: config.yaml is a run file."""
    changed = [f for f in found.findings if f.changes and f.severity != "note"]
    if not changed:
        return ""
    run = found.run
    settings = [f"run.name={run.data.name[:90]}-2", *(change.argument for change in changed[0].changes)]
    words = ["dgpo", "train", str(run.data.path / "config.yaml")]
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])


def as_data(found: Diagnosis) -> dict[str, Any]:
    """For `--json`."""
    run = found.run
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
            for finding in found.findings
        ],
        "fine": [{"subject": e.subject, "text": e.fine} for e in found.examinations if e.fine],
        "too_early": [{"subject": e.subject, "text": e.open} for e in found.examinations if e.open],
    }


def _lines(finding: Finding) -> list[tuple[str, str]]:
    """Label and text of everything below a finding's title."""
    return [
        *(("seen", line) for line in finding.evidence),
        *(("change", str(change)) for change in finding.changes),
        *(("or" if line.startswith("or ") else "do", line.removeprefix("or ")) for line in finding.advice),
        ("why", finding.why),
    ]


def _once(lines: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Labels only where they change."""
    shown: list[tuple[str, str]] = []
    last = ""
    for label, line in lines:
        shown.append(("" if label == last else label, line))
        last = label
    return shown


class _Page:
    """Lines on a console, wrapped here: a table would fill them up with spaces."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = max(NARROWEST, min(console.width, WIDEST))

    def line(self, text: str | Text = "", style: str = "") -> None:
        """As it is; a long one is left to the terminal."""
        self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def title(self, finding: Finding) -> None:
        """Severity, title and id."""
        severity = finding.severity.upper()
        lines = self._wrap(f"{severity}  {finding.title}  [{finding.id}]", "  ")
        first = Text(lines[0], "bold")
        first.stylize(STYLES[finding.severity], 0, len(severity))
        self.line(first)
        for line in lines[1:]:
            self.line(line, "bold")

    def rows(self, rows: Iterable[tuple[str, str]], wide: int) -> None:
        """Label and text, the texts below each other."""
        for label, text in rows:
            start = f"  {label:<{wide}}  "
            for line in self._wrap(start + text, " " * len(start)):
                self.line(line)

    def _wrap(self, text: str, indent: str) -> list[str]:
        return textwrap.wrap(
            text, self.width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
            drop_whitespace=True, replace_whitespace=False,
        )  # fmt: skip
