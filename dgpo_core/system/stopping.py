"""Stopping a run: SIGTERM, a terminal that is closed (SIGHUP) and Ctrl-C ask for it, a second Ctrl-C insists; the run
file's `stop` sets limits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dgpo_schemas.sections.whole import StopSection

__all__ = ["Interrupted", "Limit", "StopRequest", "check_signals", "limit_reached", "stops_a_run"]

Limit = Literal["seconds", "samples", "target"]
_heeded: list[StopRequest] = []
"""Requests that signals make now."""


def check_signals() -> None:
    """For whoever waits on the main thread while nothing of a run is at stake yet, such as for a server when the run
    starts. Raises KeyboardInterrupt if a signal has asked for a stop."""
    if threading.current_thread() is threading.main_thread() and any(one.requested for one in _heeded):
        raise KeyboardInterrupt


def limit_reached(
    stop: StopSection, *, seconds: float, samples: int, evaluations: Iterable[Mapping[str, Any]]
) -> Limit | None:
    """The limit of `stop` that a run has reached, if any.

    seconds, samples: trained so far. evaluations: records of evaluations.jsonl so far, in order; the first of each
    iteration is the first reward. A target reached once stays reached, whatever later evaluations say.
    """
    if stop.target is not None:
        iteration = -1
        for record in evaluations:
            first, iteration = record["iteration"] != iteration, record["iteration"]
            meant = first if stop.reward is None else record["reward"] == stop.reward
            if meant and record["value"] >= stop.target:
                return "target"
    if stop.samples is not None and samples >= stop.samples:
        return "samples"
    return "seconds" if stop.seconds is not None and seconds >= stop.seconds else None


class Interrupted(Exception):
    """The run was asked to stop and is at a point where nothing of its state is half done."""


class StopRequest:
    """Whether a stop was asked for. The trainer checks it where the weights are those of a finished iteration, so an
    abandoned iteration is simply computed again after the resume, bit for bit."""

    def __init__(self) -> None:
        self.requested = False

    def request(self) -> None:
        """Ask for a stop."""
        self.requested = True

    def check(self) -> None:
        """Raise Interrupted if a stop was asked for."""
        if self.requested:
            raise Interrupted

    @contextmanager
    def on_signals(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP while the context lasts; a second SIGINT raises KeyboardInterrupt at once.

        SIGHUP stays ignored where it was, as under nohup. A stop that cannot be announced, because the terminal is
        gone, is one all the same.
        """

        def handle(number: int, frame: FrameType | None) -> None:
            if self.requested and number == signal.SIGINT:
                raise KeyboardInterrupt
            again = self.requested
            self.request()
            if not again:
                with contextlib.suppress(Exception):
                    announce("stopping: saving the state; press Ctrl-C again to stop at once without saving")

        previous = {number: signal.signal(number, handle) for number in stops_a_run()}
        _heeded.append(self)
        try:
            yield
        finally:
            _heeded.remove(self)
            for number, handler in previous.items():
                signal.signal(number, handler)


def stops_a_run() -> list[signal.Signals]:
    """The signals that ask for a stop: not SIGHUP where the process was told to ignore it."""
    hangs_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangs_up]
