"""What watches a run: the methods of a callback, and the clock of the phases that it hears of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what shows a run need not wait for torch
    from dgpo_core.training.evaluation import Evaluation
    from dgpo_schemas.metrics import MetricsRecord, OutcomeRecord, PromptScores, TimingRecord

__all__ = ["Callback", "Callbacks", "Phases"]


class Callback:
    """Watches a run; what is not overridden does nothing. Called in the main process, one callback after the other.

    Phases are timed from the first of their calls to the last, on `time.perf_counter`: "measure" (by a timestep
    policy), "roll_out", "wait_for_scores", "weigh", "optimize", "evaluate" and "checkpoint". A phase ends when the
    device has done what was queued in it.
    """

    def on_start(self, directory: Path, iteration: int, iterations: int, facts: Mapping[str, Any]) -> None:
        """The run is ready to go on from `iteration` (0: new)."""

    def on_iteration_start(self, iteration: int) -> None:
        """The iteration after `iteration` others begins."""

    def on_phase_start(self, phase: str) -> None:
        """A phase begins."""

    def on_phase_end(self, phase: str, seconds: float) -> None:
        """A phase is over, also one that failed."""

    def on_progress(self, phase: str, done: int, total: int) -> None:
        """Samples that are done, of "roll_out", "score", "optimize" or "evaluate"; a micro-batch of a rollout has been
        handed to the rewards by then."""

    def on_metrics(self, metrics: MetricsRecord) -> None:
        """The weights are updated; evaluation and checkpoint, if due, follow."""

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """An iteration is over, with what was due at its end."""

    def on_evaluation(self, evaluation: Evaluation, scores: PromptScores) -> None:
        """An evaluation is finished."""

    def on_checkpoint(self, iteration: int) -> None:
        """The state after so many iterations is saved."""

    def on_message(self, text: str) -> None:
        """Something to know: a checkpoint, a damaged file, a stop."""

    def on_warning(self, text: str) -> None:
        """Something that makes the run worth less than it seems; shown where nothing else is."""
        self.on_message(text)

    def on_end(self, outcome: OutcomeRecord) -> None:
        """The run ended, one way or another."""


class Callbacks(Callback):
    """Several as one, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        for event in (name for name in vars(Callback) if name.startswith("on_")):
            setattr(self, event, partial(self._each, event))

    def _each(self, event: str, *arguments: Any) -> None:
        for callback in self._callbacks:
            getattr(callback, event)(*arguments)


class Phases:
    """Seconds and samples since the last `clear`, by phase (see `Callback`).

    synchronize: waits for the device, so that the clock measures work and not its queueing.
    """

    def __init__(self, callbacks: Callback, synchronize: Callable[[], None]) -> None:
        self.callbacks = callbacks
        self.synchronize = synchronize
        self.seconds: dict[str, float] = defaultdict(float)
        self.samples: dict[str, int] = defaultdict(int)
        self.rewards: Mapping[str, float] = {}
        """Seconds that each reward was at work, by label."""

    def clear(self) -> None:
        """An iteration begins."""
        self.seconds.clear()
        self.samples.clear()

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Work of a phase."""
        self.callbacks.on_phase_start(phase)
        started = time.perf_counter()
        try:
            yield
        finally:
            self.synchronize()
            seconds = time.perf_counter() - started
            self.seconds[phase] += seconds
            self.callbacks.on_phase_end(phase, seconds)
