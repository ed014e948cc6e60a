"""The callbacks of every run: log files and plugin observers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.hookspecs import RunInfo
from dgpo_core.media.images import write_images
from dgpo_core.training.callbacks import Callback

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_core.storage.run_directory import RunDirectory
    from dgpo_core.training.evaluation import Evaluation
    from dgpo_core.training.state import RunState
    from dgpo_schemas.metrics import MetricsRecord, OutcomeRecord, PromptScores, TimingRecord

__all__ = ["Logs", "PluginObservers"]


class Logs(Callback):
    """Writes the logs, scores, images and outcome to the run directory."""

    def __init__(self, directory: RunDirectory, state: RunState) -> None:
        self.directory = directory
        self.state = state

    def on_metrics(self, metrics: MetricsRecord) -> None:
        """Append a line to metrics.jsonl."""
        self.directory.append("metrics.jsonl", metrics.model_dump(mode="json"))

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Append a line to timings.jsonl, and update the training time in this iteration's checkpoint, if there is
        one."""
        self.directory.append("timings.jsonl", timing.model_dump(mode="json"))
        if self.state.saved == self.state.iteration:
            self.directory.set_clock(self.state.iteration, self.state.trained_seconds)

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """Write the images and the scores per prompt, and append to evaluations.jsonl."""
        if evaluation.media:
            images = self.directory.path / "images" / f"{scores.iteration:06d}"
            write_images(images, evaluation.media, evaluation.prompts)
        self.directory.write_scores(scores)
        self.directory.append("evaluations.jsonl", *(record.model_dump(mode="json") for record in evaluation.records))

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Write outcome.json."""
        self.directory.conclude(outcome)


class PluginObservers(Callback):
    """Calls the lifecycle hooks of plugins (`hookspecs`)."""

    def __init__(self, registry: Registry, run: RunInfo) -> None:
        self.registry = registry
        self.run = run

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Call dgpo_run_started."""
        self.registry.notify("dgpo_run_started", run=self.run)

    def on_metrics(self, metrics: MetricsRecord) -> None:
        """Call dgpo_iteration_finished."""
        record = metrics.model_dump(mode="json")
        self.registry.notify("dgpo_iteration_finished", run=self.run, iteration=metrics.iteration, metrics=record)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Call dgpo_run_finished."""
        self.registry.notify("dgpo_run_finished", run=self.run, outcome=outcome.outcome)
