"""What the page asks for, as JSON data. Nothing here writes, locks or imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.system.reading import why
from dgpo_lab.reporting.diagnostics import COUNTS, OPTIMIZATION
from dgpo_lab.watching.discovery import Watched
from dgpo_lab.watching.samples import evaluations_with_images
from dgpo_lab.watching.status import LOGS, Described, describe, status
from dgpo_lab.watching.tailing import columns, increment, number

__all__ = ["changes", "described", "listing", "panels"]


def described(run: Path) -> Described:
    """Return the settings of a run; config.yaml is read again when it has changed."""
    try:
        found = (run / "config.yaml").stat()
        return _described(run, found.st_mtime_ns, found.st_size)
    except OSError as error:
        return Described(fault=f"{run / 'config.yaml'}: cannot be read: {why(error)}")


@lru_cache(maxsize=256)
def _described(run: Path, changed: int, size: int) -> Described:
    return describe(run)


def listing(watched: Watched) -> dict[str, Any]:
    """Return all watched runs with their states."""
    runs = [
        {"id": name, **asdict(status(run, described(run)))}
        for name, run in sorted(watched.runs().items(), key=_natural)
    ]
    return {"watched": [str(path) for path in watched.paths], "single": watched.single, "runs": runs}


def panels() -> list[dict[str, Any]]:
    """Return the figures of training metrics: titles, meanings and the columns that they draw."""
    return [asdict(panel) for panel in (*OPTIMIZATION, *COUNTS)]


def changes(run: Path, cursors: Mapping[str, str]) -> dict[str, Any]:
    """Return the state of a run and what its logs have gained since the cursors, by the name of the log.

    Raises UserError if a log cannot be read.
    """
    about = described(run)
    logs: dict[str, Any] = {}
    for log in LOGS:
        try:
            found = increment(run / log, cursors.get(log, ""))
        except OSError as error:
            raise UserError(f"{run / log}: cannot be read: {why(error)}") from error
        logs[log.removesuffix(".jsonl")] = {
            "cursor": found.cursor, "restarted": found.restarted, "more": found.more, "damaged": found.damaged,
            "rows": len(found.records),
            **(
                {"records": [e for record in found.records for e in _evaluation(record)]}
                if log == "evaluations.jsonl"
                else {"columns": columns(found.records)}
            ),
        }  # fmt: skip
    return {
        "name": about.name, "may_stop_earlier": about.may_stop_earlier, "status": asdict(status(run, about)),
        "images": evaluations_with_images(run), **logs,
    }  # fmt: skip


def _evaluation(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the page shows of an evaluation: scores with intervals; nothing if the record has no score."""
    if (value := number(record.get("value"))) is None:
        return []
    groups = record.get("groups")
    tasks = {
        str(name): known
        for name, group in (groups.items() if isinstance(groups, Mapping) else ())
        if isinstance(group, Mapping) and (known := number(group.get("value"))) is not None
    }
    return [
        {
            "iteration": record["iteration"], "reward": str(record.get("reward", "")),
            "role": str(record.get("role", "target")), "value": value, "low": number(record.get("low")),
            "high": number(record.get("high")), "n": number(record.get("n")), "groups": tasks,
        }
    ]  # fmt: skip


def _natural(item: tuple[str, Path]) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts seed-10 after seed-9."""
    words = "".join(c if c.isascii() and c.isdigit() else f"\0{c}\0" for c in item[0]).split("\0")
    return [(word.isdecimal(), int(word) if word.isdecimal() else 0, word) for word in words if word]
