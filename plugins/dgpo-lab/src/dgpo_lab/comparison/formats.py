"""Write a comparison as a table for terminals, Markdown, CSV, JSON or an HTML page."""

from __future__ import annotations

import csv
import html
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dgpo_core.system.units import number
from dgpo_lab.comparison.comparing import Difference, Row
from dgpo_lab.comparison.reading import Entry

__all__ = ["FORMATS", "render"]

HEADER = ("score", "run", "value", "95 % interval", "difference")
WIDTH = 80
NOTE = "Differences are to {first}; in brackets the 95 % interval over the same prompts, * where it excludes 0."
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #8884}"
    "td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}"
)


def render(entries: Sequence[Entry], rows: Sequence[Row], how: str) -> str:
    """Return the comparison in one of `FORMATS`."""
    return FORMATS[how](entries, rows)


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the texts of the rows; a score is named in its first row."""
    found: list[tuple[str, ...]] = []
    last = None
    for row in rows:
        name = f"{row.suite}: {row.name}"
        value = "-" if row.score is None or row.score.value is None else number(row.score.value)
        found.append(("" if name == last else name, row.run, value, _interval(row), _difference(row.difference)))
        last = name
    return found


def _interval(row: Row) -> str:
    score = row.score
    if score is None or score.low is None or score.high is None:
        return ""
    return f"{number(score.low)} to {number(score.high)}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.low is None or difference.high is None:
        why = f"other {difference.other}" if difference.other else "not paired"
        return f"{difference.value:+.3f} ({why})"
    sure = "*" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{sure}"


def _notes(entries: Sequence[Entry], rows: Sequence[Row]) -> list[str]:
    """Return the sentences below the table."""
    notes = [NOTE.format(first=entries[0].label)] if len(entries) > 1 else []
    notes += [f"{entry.label}: {entry.described}{_when(entry)}" for entry in entries]
    for row in rows:
        if row.score is not None and row.score.missing:
            notes.append(f"{row.suite}, {row.run}: {row.score.missing} samples could not be scored")
        for reason in () if row.score is None else row.score.notes:
            notes.append(f"{row.suite}, {row.run}: not comparable with published scores: {reason}")
    return list(dict.fromkeys(notes))


def _when(entry: Entry) -> str:
    return "" if entry.iteration is None else f", held-out prompts after iteration {entry.iteration}"


def _table(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    """Return lines of at most 80 columns: the score above its rows, one row per run."""
    cells = _cells(rows)
    widths = [max(len(row[column]) for row in [HEADER, *cells]) for column in range(1, 5)]
    widths[0] = max(8, min(widths[0], WIDTH - 2 - sum(widths[1:]) - 6))
    lines = []
    for name, *others in cells:
        if name:
            lines += ["", *textwrap.wrap(name, WIDTH)]
        run, value, interval, difference = others
        short = run if len(run) <= widths[0] else run[: widths[0] - 1] + "…"
        line = f"  {short:<{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}  {difference}"
        lines.append(line.rstrip())
    lines += ["", *(line for note in _notes(entries, rows) for line in textwrap.wrap(note, WIDTH))]
    return "\n".join(lines[1:]) + "\n"


def _markdown(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(HEADER), "|---|---|--:|---|---|", *map(line, _cells(rows)), ""]
    return "\n".join([*lines, *(f"- {note}" for note in _notes(entries, rows))]) + "\n"


def _csv(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["suite", "score", "run", "value", "low", "high", "missing", "difference", "difference_low", "difference_high"]
    )
    for row in rows:
        score, found = row.score, row.difference
        values: list[Any] = [None] * 4 if score is None else [score.value, score.low, score.high, score.missing]
        values += [None] * 3 if found is None else [found.value, found.low, found.high]
        writer.writerow([row.suite, row.name, row.run, *("" if value is None else value for value in values)])
    return out.getvalue()


def _json(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    data = {
        "runs": [{"run": entry.label, "target": entry.described, "iteration": entry.iteration} for entry in entries],
        "scores": [
            {
                "suite": row.suite,
                "score": row.name,
                "run": row.run,
                "value": None if row.score is None else row.score.value,
                "low": None if row.score is None else row.score.low,
                "high": None if row.score is None else row.score.high,
                "missing": None if row.score is None else row.score.missing,
                "difference": None if row.difference is None else asdict(row.difference),
                "not_comparable": [] if row.score is None else list(row.score.notes),
            }
            for row in rows
        ],
    }
    return json.dumps(data, indent=1) + "\n"


def _html(entries: Sequence[Entry], rows: Sequence[Row]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    title = html.escape(" and ".join(entry.label for entry in entries))
    body = [line(HEADER, "th"), *(line(cells, "td") for cells in _cells(rows))]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(entries, rows))
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        f"<h1>{title}</h1>\n<table>\n" + "\n".join(body) + f"\n</table>\n<ul>{notes}</ul>\n</html>\n"
    )


FORMATS = {"table": _table, "markdown": _markdown, "csv": _csv, "json": _json, "html": _html}
"""Name of each format, and its function."""
