"""What a run tells whoever watches it. The command line draws it; without a watcher nothing happens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, TimingRecord

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Watches a run. Verbs are "roll out", "score", "optimise", "evaluate"."""

    def started(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """The run is ready to go on from `iteration` (0: new)."""

    def phase(self, verb: str, done: int, total: int) -> None:
        """Progress within a verb, in samples."""

    def iteration(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """An iteration is finished."""

    def evaluated(self, records: list[EvaluationRecord]) -> None:
        """An evaluation is finished, one record a reward."""

    def note(self, text: str) -> None:
        """Something to know: a checkpoint, a damaged file, a stop."""

    def warn(self, text: str) -> None:
        """Something that makes the run worth less than it seems; shown where nothing else is."""

    def finished(self, outcome: str) -> None:
        """The run ended: "finished", "interrupted" or "failed"."""


class Silent:
    """Watches nothing."""

    def started(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Nothing."""

    def phase(self, verb: str, done: int, total: int) -> None:
        """Nothing."""

    def iteration(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Nothing."""

    def evaluated(self, records: list[EvaluationRecord]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """A note like others."""
        self.note(text)

    def finished(self, outcome: str) -> None:
        """Nothing."""
