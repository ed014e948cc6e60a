"""The clock of an iteration: seconds and samples of its phases, which are those that callbacks hear of."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from dgpo_core.training.callbacks import Callback

__all__ = ["Phases"]


class Phases:
    """Seconds and samples since the last `clear`, by phase (see `Callback`).

    synchronise: waits for the device, so that the clock measures work and not its queueing.
    """

    def __init__(self, callbacks: Callback, synchronise: Callable[[], None]) -> None:
        self.callbacks = callbacks
        self.synchronise = synchronise
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
            self.synchronise()
            seconds = time.perf_counter() - started
            self.seconds[phase] += seconds
            self.callbacks.on_phase_end(phase, seconds)
