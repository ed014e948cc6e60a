"""TensorBoard: event files below the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dgpo_core.tracking.tracker import MediaFile, Table, TrackedRun, Tracker

__all__ = ["TensorBoardTracker"]


class TensorBoardTracker(Tracker):
    """Writes event files with `torch.utils.tensorboard`. A resumed run hides what it repeats (`purge_step`).

    Videos are shown as their frames in one image: TensorBoard itself shows none.
    """

    package = "tensorboard"

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: TrackedRun) -> None:
        """Open a new event file, and write configuration, versions and tags as texts."""
        from torch.utils.tensorboard import SummaryWriter

        # The first event of the file: what earlier files hold from this step on is hidden.
        purge = run.iteration + 1 if run.iteration else None
        self._writer = SummaryWriter(str(run.directory), purge_step=purge)
        for name, value in (("configuration", run.config), ("versions", run.versions), ("tags", list(run.tags))):
            text = "\n".join(f"    {line}" for line in json.dumps(value, indent=2, ensure_ascii=False).splitlines())
            self._writer.add_text(f"run/{name}", text, run.iteration)
        self._writer.flush()

    def scalars(self, values: Mapping[str, float], iteration: int) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        self._writer.flush()

    def histogram(self, name: str, values: Sequence[float], iteration: int) -> None:
        """Add a histogram."""
        self._writer.add_histogram(name, np.asarray(values), iteration)

    def media(self, name: str, files: Sequence[MediaFile], iteration: int) -> None:
        """Add each image, and its caption as a text."""
        for i, file in enumerate(files):
            with Image.open(file.image) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image(f"{name}/{i:02d}", pixels, iteration, dataformats="HWC")
            self._writer.add_text(f"{name}/{i:02d}", file.caption, iteration)
        self._writer.flush()

    def table(self, name: str, table: Table, iteration: int) -> None:
        """Add the table as a text in Markdown."""
        self._writer.add_text(name, table.markdown(), iteration)

    def finish(self, outcome: str) -> None:
        """Write the outcome and close the file."""
        self._writer.add_text("run/outcome", outcome)
        self._writer.close()
