"""Weights & Biases: online, or offline below the run directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun, Tracker

__all__ = ["WandbTracker"]

log = logging.getLogger(__name__)

STEP = "iteration"


class WandbTracker(Tracker):
    """Logs with the library wandb, which reads `WANDB_MODE`, `WANDB_ENTITY`, `WANDB_API_KEY` and so on.

    Without a key nothing would be logged, or a question asked in the middle of a run: it logs offline then, and says
    how to upload. Points are placed by their iteration and not by wandb's own step, which may never go back.
    """

    package = "wandb"

    def __init__(self) -> None:
        self._run: Any = None
        self._library: Any = None

    def start(self, run: TrackedRun) -> None:
        """Begin the run with `run.key` as its id, or continue it."""
        import wandb

        self._library = wandb
        mode: Any = os.environ.get("WANDB_MODE")
        if not mode and not wandb.api.api_key:
            mode = "offline"
            log.warning(
                "logging.trackers: wandb has no API key and logs offline; `wandb sync --append %s` uploads it after "
                "`wandb login`", run.directory / "wandb" / "offline-*",
            )  # fmt: skip
        run.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.key,
            resume="allow",
            dir=str(run.directory),
            tags=list(run.tags) or None,
            config={**run.config, "versions": dict(run.versions)},
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, quiet=True),
        )
        self._run.define_metric(STEP, hidden=True)
        self._run.define_metric("*", step_metric=STEP)

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Log numbers."""
        self._log(values, iteration)

    def histogram(self, name: str, values: Sequence[float], iteration: int) -> None:
        """Log a histogram."""
        self._log({name: self._library.Histogram(list(values))}, iteration)

    def media(self, name: str, files: Sequence[MediaFile], iteration: int) -> None:
        """Log images, and videos beside their frames."""
        images = [self._library.Image(str(file.image), caption=file.caption) for file in files]
        videos = [
            self._library.Video(str(file.video), caption=file.caption, format="mp4") for file in files if file.video
        ]
        self._log({name: images} | ({f"{name}.videos": videos} if videos else {}), iteration)

    def table(self, name: str, table: Table, iteration: int) -> None:
        """Log a table."""
        rows = [list(row) for row in table.rows]
        self._log({name: self._library.Table(columns=list(table.columns), data=rows)}, iteration)

    def finish(self, outcome: str) -> None:
        """End the run; one that failed has another exit code."""
        self._run.summary["outcome"] = outcome
        self._run.finish(exit_code=int(outcome == "failed"))

    def _log(self, values: Mapping[str, Any], iteration: int) -> None:
        self._run.log({**values, STEP: iteration})
