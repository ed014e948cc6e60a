"""Stop a run on SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C, at once on a second Ctrl-C, or at a limit of the section `stop`."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.system.portable import EARLY, HANGUP

if TYPE_CHECKING:
    from dgpo_schemas.sections.whole import StopSection

__all__ = ["Interrupted", "Limit", "StopRequest", "check_signals", "limit_reached", "stops_a_run"]

Limit = Literal["seconds", "samples", "target"]
_active: list[StopRequest] = []
"""Requests that signals currently set."""


def check_signals() -> None:
    """Raise KeyboardInterrupt if a signal has requested a stop.

    For loops on the main thread that wait while there is no state to save, such as for a server at the start of a run.
    """
    if threading.current_thread() is threading.main_thread() and any(request.requested for request in _active):
        raise KeyboardInterrupt


def limit_reached(
    stop: StopSection, *, seconds: float, samples: int, evaluations: Iterable[Mapping[str, Any]]
) -> Limit | None:
    """Return the limit of `stop` that a run has reached, or None.

    seconds, samples: trained so far. evaluations: records of evaluations.jsonl so far, in order; the first of each
    iteration is of the first reward. A target that was reached once (`stop.in_a_row` times in a row) counts as reached,
    whatever later evaluations measure.
    """
    if stop.target is not None:
        iteration, above = -1, 0
        for record in evaluations:
            first, iteration = record["iteration"] != iteration, record["iteration"]
            selected = first if stop.reward is None else record["reward"] == stop.reward
            if selected:
                above = above + 1 if record["value"] >= stop.target else 0
            if above >= stop.in_a_row:
                return "target"
    if stop.samples is not None and samples >= stop.samples:
        return "samples"
    return "seconds" if stop.seconds is not None and seconds >= stop.seconds else None


class Interrupted(Exception):
    """A stop was requested, and the state of the run is consistent."""


class StopRequest:
    """Whether a stop was requested.

    The trainer checks it where the weights are those of a finished iteration, so a resumed run repeats an interrupted
    iteration bit for bit.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal: int | None = None
        """Number of the signal that requested it; None if another process or a caller did."""

    @property
    def from_keyboard(self) -> bool:
        """Whether Ctrl-C requested it."""
        return self.signal == signal.SIGINT

    def request(self) -> None:
        """Request a stop."""
        self.requested = True

    def check(self) -> None:
        """Raise Interrupted if a stop was requested."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def on_signals(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Handle the signals of `stops_a_run` within the context; a second SIGINT raises KeyboardInterrupt at once.

        SIGHUP stays ignored if it was ignored before, as under nohup. Errors of `announce`, such as those of a closed
        terminal, are ignored.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            again = self.requested
            self.request()
            if not again:
                self.signal = number
                with contextlib.suppress(Exception):
                    announce("stopping: saving the state; press Ctrl-C again to stop at once without saving")

        previous = {number: signal.signal(number, handle) for number in stops_a_run()}
        _active.append(self)
        try:
            yield
        finally:
            _active.remove(self)
            for number, handler in previous.items():
                signal.signal(number, handler)


def stops_a_run() -> list[signal.Signals]:
    """Return the signals that request a stop: SIGINT, SIGTERM, SIGHUP unless the process ignores it, and SIGUSR1, which
    clusters send some time before they end a job (`#SBATCH --signal`). Not every platform has the last two."""
    more = [one for one in (HANGUP, EARLY) if one is not None and signal.getsignal(one) is not signal.SIG_IGN]
    return [signal.SIGINT, signal.SIGTERM, *more]
