"""Resident memory over a long run."""

from __future__ import annotations

from pathlib import Path

import psutil

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig

__all__ = ["growth"]


class _Watcher(Callback):
    def __init__(self) -> None:
        self.resident: list[int] = []
        self.process = psutil.Process()

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        self.resident.append(self.process.memory_info().rss)


def growth(directory: Path, iterations: int) -> tuple[int, int]:
    """Bytes after a fifth of the iterations, when all buffers have been made, and at the end: each the median of a
    tenth of them. Evaluations and checkpoints included."""
    registry = Registry()
    registry.register(plugin, distribution="toy")
    data = run_data(
        directory, run={"iterations": iterations}, evaluation={"every": 20, "prompts": 3, "images": 1},
        checkpoints={"every": 20, "keep": 1},
    )  # fmt: skip
    watcher = _Watcher()
    Trainer(RunConfig.model_validate(data), registry, callbacks=[watcher]).train()
    tenth = max(1, iterations // 10)
    early, late = watcher.resident[tenth : 2 * tenth], watcher.resident[-tenth:]
    return sorted(early)[len(early) // 2], sorted(late)[len(late) // 2]
