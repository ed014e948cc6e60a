"""Training runs that are timed: settings against each other, in turns, so that what else a machine does meets all."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig

__all__ = ["QUICKSTART", "configuration", "in_turns", "timings"]

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
BARE = (
    "prompts.heldout=null",
    "evaluation.every=0",
    "evaluation.rewards=null",
    "checkpoints.every=1000000",
    "run.threads=1",
)


class _Watcher(Callback):
    def __init__(self) -> None:
        self.timings: list[TimingRecord] = []

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        self.timings.append(timing)


def configuration(settings: Sequence[str], registry: Registry, iterations: int) -> RunConfig:
    """The quickstart for so many iterations and one to warm up, on one thread, without evaluations and checkpoints."""
    return load_run_config(QUICKSTART, [*BARE, f"run.iterations={iterations + 1}", *settings], registry)


def timings(config: RunConfig, registry: Registry) -> list[TimingRecord]:
    """Of every iteration but the first."""
    watcher = _Watcher()
    with tempfile.TemporaryDirectory() as directory:
        run = config.run.model_copy(update={"output": directory})
        Trainer(config.model_copy(update={"run": run}), registry, callbacks=[watcher]).train()
    return watcher.timings[1:]


def in_turns(
    points: Mapping[str, RunConfig], registry: Registry, phases: Sequence[str], turns: int
) -> dict[str, dict[str, float]]:
    """Seconds an iteration of each point by phase: the median of the medians of `turns` runs of each."""
    found: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in phases} for name in points}
    for _ in range(turns):
        for name, config in points.items():
            lines = timings(config, registry)
            for phase in phases:
                found[name][phase].append(statistics.median(line.phases[phase].seconds for line in lines))
    return {name: {phase: statistics.median(seconds) for phase, seconds in row.items()} for name, row in found.items()}
