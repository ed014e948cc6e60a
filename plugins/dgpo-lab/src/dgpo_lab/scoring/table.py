"""Format results as a text table and as JSON records."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from rich.cells import cell_len

from dgpo_core.training.score_samples import Result
from dgpo_schemas.diagnostics import understood

__all__ = ["details", "record", "table", "value_text"]

TICK = {True: "✓", False: "✗"}
LONGEST_NAME = 32
"""Maximum width of the first column; longer names get a separate line."""
LONGEST_TEXT = 200
"""Maximum characters of a reward's own diagnostics in the table; the JSON has all of them."""

Row = tuple[str, Sequence[str], Sequence[str]]
"""Name, short cells, details (one text each)."""


def table(header: Row, rows: Sequence[Row], width: int) -> Iterator[str]:
    """Yield lines of at most `width` columns: the name, the cells, and the details wrapped into the remaining width."""
    first = min(max(cell_len(_plain(name)) for name, _, _ in [header, *rows]), LONGEST_NAME)
    widths = [max(map(cell_len, column)) for column in zip(*(cells for _, cells, _ in [header, *rows]), strict=True)]
    left = first + sum(widths) + 2 * len(widths) + 2
    for name, cells, texts in [header, *rows]:
        name = _plain(name)
        if cell_len(name) > first:
            yield name
            name = ""
        start = "  ".join([name + " " * (first - cell_len(name)), *map(str.rjust, cells, widths)])
        lines = [line for text in texts for line in _wrapped(text, max(width - left, 20))]
        yield f"{start}  {lines[0]}" if lines else start.rstrip()
        yield from (" " * left + line for line in lines[1:])


def details(result: Result) -> list[str]:
    """Return the reason of a missing result, or the clauses, or else the reward's own diagnostics."""
    if result.value is None:
        return [result.reason]
    diagnostics = understood(result.diagnostics)
    if diagnostics.clauses:
        return [f"{TICK[clause.ok]} {clause.text}" for clause in diagnostics.clauses]
    other = {key: value for key, value in result.diagnostics.items() if key not in ("reason", "marks", "clauses")}
    text = ", ".join(f"{key} {_short(value)}" for key, value in other.items() if isinstance(value, str | int | float))
    return [textwrap.shorten(_plain(text), LONGEST_TEXT, placeholder=" ...")] if text else []


def value_text(value: float | None) -> str:
    """Format a value for the table."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def record(result: Result, key: str = "file", **more: Any) -> dict[str, Any]:
    """Convert a result to JSON data, whatever its diagnostics contain; nan and infinity become null."""
    data = {
        key: result.name,
        **more,
        "prompt": result.prompt.text,
        "value": result.value,
        "missing": result.value is None,
        "diagnostics": dict(result.diagnostics),
    }
    plain: dict[str, Any] = json.loads(to_json(_text(data), inf_nan_mode="null", fallback=str))
    return plain


def _text(value: Any) -> Any:
    """Replace undecodable characters, which file names may contain."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_text(key): _text(inner) for key, inner in value.items()}
    return [_text(inner) for inner in value] if isinstance(value, list | tuple) else value


def _plain(text: str) -> str:
    """Return a single line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in _text(" ".join(text.split())))


def _wrapped(text: str, width: int) -> list[str]:
    """Wrap a text; the lines of a clause are indented below its first word."""
    hang = "  " if text[:2] in {f"{tick} " for tick in TICK.values()} else ""
    return textwrap.wrap(_plain(text), width, subsequent_indent=hang) or [""]


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
