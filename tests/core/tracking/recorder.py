"""A tracker that keeps what it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun, Tracker

__all__ = ["Recorder"]


class Recorder(Tracker):
    """Keeps what it is shown."""

    package = "json"
    made: list[Recorder] = []

    def __init__(self) -> None:
        self.run: TrackedRun | None = None
        self.numbers: dict[int, dict[str, float]] = {}
        self.distributions: dict[str, list[int]] = {}
        self.files: list[tuple[str, int, list[MediaFile]]] = []
        self.tables: list[tuple[str, int, Table]] = []
        self.outcome = ""
        self.made.append(self)

    def start(self, run: TrackedRun) -> None:
        self.run = run

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        self.numbers.setdefault(iteration, {}).update(values)

    def histogram(self, name: str, values: Sequence[float], iteration: int) -> None:
        self.distributions.setdefault(name, []).append(len(values))

    def media(self, name: str, files: Sequence[MediaFile], iteration: int) -> None:
        assert all(file.image.is_file() for file in files)
        self.files.append((name, iteration, list(files)))

    def table(self, name: str, table: Table, iteration: int) -> None:
        self.tables.append((name, iteration, table))

    def finish(self, outcome: str) -> None:
        self.outcome = outcome
