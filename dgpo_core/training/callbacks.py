"""Callbacks of a training run, and the timer of its phases."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # displays of a run import this module without torch
    from dgpo_core.training.evaluation import Evaluation
    from dgpo_core.types import ScoredGroups, TrainingBatch
    from dgpo_schemas.metrics import MetricsRecord, OutcomeRecord, PromptScores, TimingRecord

__all__ = ["Callback", "Callbacks", "Phases"]


class Callback:
    """Base class of callbacks; methods that are not overridden do nothing. Callbacks run one by one in the main
    process.

    Phases are timed with `time.perf_counter`: "measure" (by a timestep policy), "rollout", "wait_for_scores",
    "compute_advantages", "optimize", "evaluate" and "checkpoint". A phase ends when the device has finished the work
    that was queued in it.
    """

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """Called when the run is ready to start from `iteration` (0 for a new run)."""

    def on_iteration_start(self, iteration: int) -> None:
        """Called at the start of an iteration, with the number of finished iterations."""

    def on_phase_start(self, phase: str) -> None:
        """Called at the start of a phase."""

    def on_phase_end(self, phase: str, seconds: float) -> None:
        """Called at the end of a phase, even if it failed."""

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Called with the number of finished samples of "rollout", "score", "optimize" or "evaluate".

        The samples of a rollout have been submitted to the rewards by then.
        """

    def on_advantages(self, iteration: int, groups: ScoredGroups, batch: TrainingBatch) -> None:
        """Called with the scored groups of an iteration (from 1) and their advantages, before the optimizer step."""

    def on_metrics(self, metrics: MetricsRecord) -> None:
        """Called after the optimizer step, before the evaluation and the checkpoint that may be due."""

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Called at the end of an iteration, after the evaluation and the checkpoint that may be due."""

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """Called after an evaluation."""

    def on_checkpoint(self, iteration: int) -> None:
        """Called after the state of `iteration` was saved."""

    def on_message(self, text: str) -> None:
        """Called with an informational message: a checkpoint, a damaged file, a stop."""

    def on_warning(self, text: str) -> None:
        """Called with a warning, which is shown even in quiet mode."""
        self.on_message(text)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """Called when the run has ended, whatever the outcome."""


class Callbacks(Callback):
    """Calls several callbacks in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        for event in (name for name in vars(Callback) if name.startswith("on_")):
            setattr(self, event, partial(self._each, event))

    def _each(self, event: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(*arguments)


class Phases:
    """Seconds and samples per phase since the last `clear` (see `Callback` for the phases).

    synchronize: waits for the device, so that the timer includes queued work.
    """

    def __init__(self, callbacks: Callback, synchronize: Callable[[], None]) -> None:
        self.callbacks = callbacks
        self.synchronize = synchronize
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples: dict[str, int] = defaultdict(int)
        self.rewards: dict[str, float] = defaultdict(float)
        """Seconds that each reward spent scoring, by label."""
        self.costs: Mapping[str, Mapping[str, float]] = {}
        """What scoring cost, by label and name (`RewardBase.costs`)."""

    def clear(self) -> None:
        """Reset all counters at the start of an iteration."""
        self.seconds.clear()
        self.samples.clear()
        self.rewards.clear()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Context manager that times a phase and notifies the callbacks."""
        self.callbacks.on_phase_start(phase)
        started = time.perf_counter()
        try:
            yield
            self.synchronize()  # not after an error: if another rank was lost, queued collectives of this one never end
        finally:
            seconds = time.perf_counter() - started
            self.seconds[phase] += seconds
            self.callbacks.on_phase_end(phase, seconds)
