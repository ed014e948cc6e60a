"""Find the run directories below the paths that are watched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.system.reading import why

__all__ = ["Watched", "find_runs"]

DEEPEST = 5
"""Levels below a watched directory; the cells of an ablation are four levels below `runs`."""
MOST = 1000
INSIDE = frozenset({"checkpoints", "images", "scores", "rewards", "trackers", "suites"})
"""Directories of a run, which contain no runs."""


class Watched:
    """The paths that are watched, and the runs below them by name. Only these runs can be asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._runs: Mapping[str, Path] = {}

    @property
    def single(self) -> bool:
        """Whether one run is watched, not a directory of runs."""
        return len(self.paths) == 1 and is_run(self.paths[0])

    def runs(self) -> Mapping[str, Path]:
        """Look for runs now; return their directories by name. Raises UserError if a watched path cannot be read."""
        found: dict[str, Path] = {}
        for path in self.paths:
            for run in find_runs(path):
                inner = run.relative_to(path).as_posix()
                alone = path.resolve().name or str(path) if inner == "." else inner
                name = alone if len(self.paths) == 1 else str(path if inner == "." else path / inner)
                found[name] = run
        self._runs = found
        return found

    def run(self, name: str) -> Path | None:
        """Return the directory of a run by its name, None if there is no such run."""
        found = self._runs.get(name)
        return found if found is not None else self.runs().get(name)


def is_run(path: Path) -> bool:
    """Return whether a directory is that of a run, also of a damaged one."""
    return any((path / name).exists() for name in ("config.yaml", "metrics.jsonl", "run.json"))


def find_runs(path: Path) -> Iterator[Path]:
    """Return the run directories in `path`, or itself. Raises UserError if it does not exist or cannot be read."""
    if not path.exists():
        raise UserError(f"{path}: no such run directory, and no directory of runs")
    if not path.is_dir():
        raise UserError(f"{path}: is a file, not a run directory or a directory of runs")
    if is_run(path):
        yield path
        return
    try:
        os.scandir(path).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {why(error)}") from error
    yield from islice(_below(path, DEEPEST, set()), MOST)


def _below(path: Path, levels: int, seen: set[str]) -> Iterator[Path]:
    """Return the runs below a directory in order of their names; follows links, each directory once."""
    real = os.path.realpath(path)
    if real in seen:
        return
    seen.add(real)
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return
    for name in names:
        inner = path / name
        if is_run(inner):
            yield inner
        elif levels > 1 and name not in INSIDE:
            yield from _below(inner, levels - 1, seen)
