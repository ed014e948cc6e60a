"""The logs of a run, and whether they still are what its checkpoints saw.

A checkpoint has the length and the SHA-256 of each log at the time when it was saved. Lines are only ever added, so a
log must still begin with those bytes; what follows is cut when a run goes on, and computed again.
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
"""The same bytes after a resume."""
TIMINGS = "timings.jsonl"
LOGS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "metrics.jsonl": {},
    TIMINGS: {"seconds": (int, float)},
    "evaluations.jsonl": {"reward": (str,), "value": (int, float)},
}
"""The logs, and what must be found in their records, besides the iteration, where no digest vouches for them."""
Entries = Mapping[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Damage:
    """A log that is not what it was after an iteration. lines: the first and the last line that may differ; of one that
    ends too early, the lines that are left."""

    path: Path
    iteration: int
    lines: tuple[int, int]
    cut: bool

    def __str__(self) -> str:
        first, last = self.lines
        if self.cut:
            left = f"ends after line {last}" if last else "is missing or empty"
            return f"{self.path}: {left}; more had been logged by iteration {self.iteration}"
        where = f"line {first} is" if first == last else f"lines {first} to {last} are"
        return f"{self.path}: {where} not what had been logged by iteration {self.iteration} (SHA-256)"


def entries(directory: Path) -> dict[str, FileEntry]:
    """The logs as they are now, for a manifest. Raises UserError for one that cannot be read."""
    return {name: _entry(directory / name) for name in DETERMINISTIC}


def clock(directory: Path, trained_seconds: float) -> Clock:
    """The time as it is now, for a checkpoint."""
    return Clock(trained_seconds, _entry(directory / TIMINGS))


def _entry(path: Path, size: int | None = None) -> FileEntry:
    try:
        return file_entry(path, size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def _content(path: Path) -> bytes:
    """Nothing if it is not there. Raises UserError for one that cannot be read."""
    try:
        return read_file(path, LARGEST_LOG)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def vouched(manifest: CheckpointManifest, time: CheckpointClock) -> Entries:
    """What a checkpoint vouches for: log to its beginning."""
    return {**{name: manifest.logs[name] for name in DETERMINISTIC if name in manifest.logs}, TIMINGS: time.timings}


def damages(directory: Path, saved: Sequence[tuple[CheckpointManifest, CheckpointClock]]) -> list[Damage]:
    """Logs that do not begin as the first of the checkpoints `saved` says; the others help to say from which line
    on."""
    found = []
    for name, entry in vouched(*saved[0]).items() if saved else ():
        if _entry(directory / name, entry.bytes) != entry:
            known = [vouched(*one)[name] for one in saved[1:] if name in vouched(*one)]
            found.append(_damage(directory / name, saved[0][0].iteration, entry, known))
    return found


def _damage(path: Path, iteration: int, entry: FileEntry, known: Iterable[FileEntry]) -> Damage:
    """Between the longest beginning that is as it was and the end of what is vouched for."""
    raw = _content(path)[: entry.bytes]
    good = max((one.bytes for one in known if one.bytes < entry.bytes and _entry(path, one.bytes) == one), default=0)
    first = raw.count(b"\n", 0, good) + 1
    last = max(first, raw.count(b"\n"))
    if len(raw) < entry.bytes:
        return Damage(path, iteration, (1, raw.count(b"\n")), cut=True)
    unreadable = [number for number in read_json_lines(path, LOGS[path.name])[1] if first <= number <= last]
    if len(unreadable) == 1:
        first = last = unreadable[0]
    return Damage(path, iteration, (first, last), cut=False)


def rewind(directory: Path, iteration: int, saved: Entries) -> None:
    """Drop what the logs say of later iterations: they will be computed again.

    saved: the beginnings that were found to be as they were; a log that computing depends on is cut to it. Of the
    others lines are kept that can be read and are of no later iteration: damaged ones are dropped, and named.
    """
    for name, needed in LOGS.items():
        path = directory / name
        if name in saved and name != TIMINGS:
            content = _content(path)
            if len(content) != saved[name].bytes:  # of a link to a log elsewhere, that one is cut
                write_bytes(path.resolve() if path.is_symlink() else path, content[: saved[name].bytes])
        else:  # a last line of timings.jsonl may be there that was written after the checkpoint of its iteration
            keep_json_lines(path, iteration, needed)
