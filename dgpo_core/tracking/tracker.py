"""The contract of experiment trackers."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dgpo_core.errors import UserError

__all__ = ["MediaFile", "Table", "TrackedRun", "Tracker"]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run.

    directory: for its own files, below the run directory; key: identifies the run, 8 to 64 letters and digits, the same
    whenever it is resumed; iteration: finished iterations; config: the whole configuration, as JSON values; versions:
    of dgpo, its plugins and the libraries.
    """

    name: str
    project: str
    directory: Path
    key: str
    iteration: int = 0
    tags: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MediaFile:
    """An image, or the frames of a video in one image beside the video itself; caption: the prompt."""

    image: Path
    caption: str
    video: Path | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """columns: names; rows: a text or a number, or None, for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]

    def markdown(self) -> str:
        """Return the table in Markdown, numbers with four digits."""
        lines = [self.columns, ["---"] * len(self.columns), *([_cell(value) for value in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


class Tracker(ABC):
    """Shows a run. Only the main process has trackers.

    Methods are called in order from one thread: `start` first, `finish` last. They may raise any exception: the tracker
    is then disabled, with a warning. Iterations count from 1, and 0 is the base model; a resumed run may repeat some
    iterations after those of its checkpoint. Names have groups before a slash: "reward/mean".
    """

    package: ClassVar[str]
    """Module that must be installed."""

    @classmethod
    def require(cls, name: str) -> None:
        """Raise UserError if the library is not installed."""
        if importlib.util.find_spec(cls.package) is None:
            raise UserError(f'logging.trackers: {name} is not installed: pip install "dgpo[{name}]"')

    @abstractmethod
    def start(self, run: TrackedRun) -> None:
        """Begin or continue the run."""

    @abstractmethod
    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Show numbers by name."""

    @abstractmethod
    def histogram(self, name: str, values: Sequence[float], iteration: int) -> None:
        """Show how finite values are distributed."""

    @abstractmethod
    def media(self, name: str, files: Sequence[MediaFile], iteration: int) -> None:
        """Show images and videos."""

    @abstractmethod
    def table(self, name: str, table: Table, iteration: int) -> None:
        """Show a table."""

    @abstractmethod
    def finish(self, outcome: str) -> None:
        """End with an outcome: "finished", "interrupted" or "failed"."""
