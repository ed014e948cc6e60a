"""Report a run to a caller in Python: messages and warnings by logging, iterations by a function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from dgpo_core.training.callbacks import Callback

if TYPE_CHECKING:
    from dgpo_schemas.metrics import MetricsRecord, TimingRecord

__all__ = ["Reported"]

log = logging.getLogger(__name__)


class Reported(Callback):
    """Logs messages (INFO) and warnings (WARNING), and calls `on_progress` with each iteration's metrics."""

    def __init__(self, on_progress: Callable[[MetricsRecord], object] | None = None) -> None:
        self._on_progress = on_progress

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Call `on_progress` with the metrics."""
        if self._on_progress is not None:
            self._on_progress(metrics)

    def on_message(self, text: str) -> None:
        """Log a message."""
        log.info("%s", text)

    def on_warning(self, text: str) -> None:
        """Log a warning, without its prefix, which logging adds."""
        log.warning("%s", text.removeprefix("warning: "))
