"""Verify the logs of a run against its checkpoints, and truncate them on resume.

A checkpoint contains the length and the SHA-256 of each log at the time it was saved. Lines are only appended, so a log
must still start with those bytes; what follows is dropped on resume and computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.storage.checkpoint import Clock
from dgpo_core.system.files import file_entry, keep_json_lines, read_json_lines, write_bytes
from dgpo_core.system.reading import LARGEST_LOG, read_file, why
from dgpo_schemas.manifest import CheckpointClock, CheckpointManifest, FileEntry

__all__ = ["DETERMINISTIC", "LOGS", "TIMINGS", "Damage", "clock", "damages", "entries", "rewind", "vouched"]

DETERMINISTIC = ("metrics.jsonl", "evaluations.jsonl")
"""Logs that are identical, byte for byte, after a resume."""
TIMINGS = "timings.jsonl"
LOGS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "metrics.jsonl": {},
    TIMINGS: {"seconds": (int, float)},
    "evaluations.jsonl": {"reward": (str,), "value": (int, float)},
}
"""The logs, with the keys that their records require besides `iteration`, checked where no digest covers them."""
Entries = Mapping[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Damage:
    """A log that differs from its state after an iteration.

    lines: the first and the last line that may differ; for a truncated log, the range of remaining lines.
    """

    path: Path
    iteration: int
    lines: tuple[int, int]
    cut: bool

    def __str__(self) -> str:
        first, last = self.lines
        if self.cut:
            left = f"ends after line {last}" if last else "is missing or empty"
            return f"{self.path}: {left}; more lines were logged by iteration {self.iteration}"
        where = f"line {first} differs" if first == last else f"lines {first} to {last} differ"
        return f"{self.path}: {where} from what was logged by iteration {self.iteration} (SHA-256)"


def entries(directory: Path) -> dict[str, FileEntry]:
    """Return the digests of the current logs, for a manifest. Raises UserError for a log that cannot be read."""
    return {name: _entry(directory / name) for name in DETERMINISTIC}


def clock(directory: Path, trained_seconds: float) -> Clock:
    """Return the clock for a checkpoint saved now."""
    return Clock(trained_seconds, _entry(directory / TIMINGS))


def _entry(path: Path, size: int | None = None) -> FileEntry:
    try:
        return file_entry(path, size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def _content(path: Path) -> bytes:
    """Read a log; a missing one is empty. Raises UserError if it cannot be read."""
    try:
        return read_file(path, LARGEST_LOG)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def vouched(manifest: CheckpointManifest, time: CheckpointClock) -> Entries:
    """Return the digests of a checkpoint by log: each covers the log's lines up to the checkpoint."""
    return {**{name: manifest.logs[name] for name in DETERMINISTIC if name in manifest.logs}, TIMINGS: time.timings}


def damages(directory: Path, saved: Sequence[tuple[CheckpointManifest, CheckpointClock]]) -> list[Damage]:
    """Return the logs that do not match the first of the checkpoints `saved`; earlier ones narrow down the lines."""
    found = []
    for name, entry in vouched(*saved[0]).items() if saved else ():
        if _entry(directory / name, entry.bytes) != entry:
            known = [vouched(*other)[name] for other in saved[1:] if name in vouched(*other)]
            found.append(_damage(directory / name, saved[0][0].iteration, entry, known))
    return found


def _damage(path: Path, iteration: int, entry: FileEntry, known: Iterable[FileEntry]) -> Damage:
    """Locate the damage between the longest prefix that matches a digest and the end of the verified part."""
    raw = _content(path)[: entry.bytes]
    good = max((e.bytes for e in known if e.bytes < entry.bytes and _entry(path, e.bytes) == e), default=0)
    first = raw.count(b"\n", 0, good) + 1
    last = max(first, raw.count(b"\n"))
    if len(raw) < entry.bytes:
        return Damage(path, iteration, (1, raw.count(b"\n")), cut=True)
    unreadable = [number for number in read_json_lines(path, LOGS[path.name])[1] if first <= number <= last]
    if len(unreadable) == 1:
        first = last = unreadable[0]
    return Damage(path, iteration, (first, last), cut=False)


def rewind(directory: Path, iteration: int, saved: Entries) -> None:
    """Drop the log lines of later iterations, which will be computed again.

    saved: the verified prefixes; a log of `DETERMINISTIC` is truncated to its prefix. Other logs keep the valid lines
    up to the iteration; damaged lines are dropped with a warning.
    """
    for name, needed in LOGS.items():
        path = directory / name
        if name in saved and name != TIMINGS:
            content = _content(path)
            if len(content) != saved[name].bytes:  # truncates the target of a link
                write_bytes(path.resolve() if path.is_symlink() else path, content[: saved[name].bytes])
        else:  # timings.jsonl may have a line that was written after the checkpoint of its iteration
            keep_json_lines(path, iteration, needed)
