"""All trackers of a run. One that fails is disabled, with a warning, and the run goes on."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from dgpo_core.system.files import write_text
from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun, Tracker

__all__ = ["Several", "run_key"]

log = logging.getLogger(__name__)

TRACKERS = {
    "tensorboard": "dgpo_core.tracking.tensorboard:TensorBoardTracker",
    "wandb": "dgpo_core.tracking.wandb:WandbTracker",
    "mlflow": "dgpo_core.tracking.mlflow:MlflowTracker",
}


def run_key(directory: Path) -> str:
    """Return the key of a run, which is made at its first start and kept in `directory`."""
    file = directory / "key"
    if not file.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        write_text(file, uuid4().hex[:16] + "\n")
    return file.read_text(encoding="ascii").strip()


class Several:
    """Calls each tracker that has not failed. Raises UserError at once if a library is not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._started = False
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            module, _, kind = TRACKERS[name].partition(":")
            tracker = getattr(importlib.import_module(module), kind)
            tracker.require(name)
            self._trackers[name] = tracker()

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def start(self, run: TrackedRun) -> None:
        """Start all."""
        self._started = True
        self._each(lambda tracker: tracker.start(run))

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Show numbers by name."""
        self._each(lambda tracker: tracker.scalars(values, iteration))

    def histogram(self, name: str, values: Sequence[float], iteration: int) -> None:
        """Show a distribution, if there are values."""
        if values:
            self._each(lambda tracker: tracker.histogram(name, values, iteration))

    def media(self, name: str, files: Sequence[MediaFile], iteration: int) -> None:
        """Show images and videos, if there are any."""
        if files:
            self._each(lambda tracker: tracker.media(name, files, iteration))

    def table(self, name: str, table: Table, iteration: int) -> None:
        """Show a table."""
        self._each(lambda tracker: tracker.table(name, table, iteration))

    def finish(self, outcome: str) -> None:
        """Finish all; nothing can be shown afterwards."""
        self._each(lambda tracker: tracker.finish(outcome))
        self._trackers.clear()

    @contextmanager
    def preparing(self, what: str) -> Iterator[None]:
        """Context in which something is made to be shown: if that fails, it is not shown, and the run goes on."""
        try:
            yield
        except Exception as error:
            log.warning("logging.trackers: %s cannot be shown: %s: %s", what, type(error).__name__, error)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()) if self._started else ():  # a run may end before it starts
            try:
                call(tracker)
            except Exception as error:
                del self._trackers[name]
                log.warning(
                    "logging.trackers: %s failed and is disabled, the run continues: %s: %s",
                    name, type(error).__name__, error,
                )  # fmt: skip
