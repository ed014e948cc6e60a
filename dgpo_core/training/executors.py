"""Thread pools that call rewards, one pool per reward model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["RewardExecutor", "wait_for"]

PATIENCE = 1.0
"""Seconds that `close` waits for a running call; a call that takes longer is abandoned."""
POLL_INTERVAL = 0.1
"""Seconds between checks for a stop request while waiting for a reward."""


def wait_for(future: Future[Any], interrupt: Callable[[], None]) -> None:
    """Wait until a call has returned, raised or been canceled; `interrupt` is called regularly and may raise."""
    while not wait([future], timeout=POLL_INTERVAL).done:
        interrupt()


class RewardExecutor:
    """Runs calls on threads, first in, first out.

    Unlike the threads of `concurrent.futures`, these are daemon threads, so a hanging reward does not keep the process
    alive.
    """

    def __init__(self, threads: int, most: int | None = None) -> None:
        """most: largest number of queued calls at which `wait_for_room` returns; unlimited if None."""
        self._most = most
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name="reward", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call; return the future of its result."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the rewards are closed")
            self._calls.append((future, call))
            self._changed.notify_all()
        return future

    def wait_for_room(self, interrupt: Callable[[], None]) -> None:
        """Wait until at most `most` calls are queued; `interrupt` is called regularly and may raise."""
        if self._most is None:
            return
        with self._changed:
            while len(self._calls) > self._most and not self._closed:
                if not self._changed.wait(POLL_INTERVAL):
                    interrupt()

    def discard(self) -> None:
        """Cancel the queued calls and release their media."""
        with self._changed:
            dropped = list(self._calls)
            self._calls.clear()
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()

    def close(self) -> None:
        """Stop the threads once the queue is empty; wait at most `PATIENCE` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._changed:
            while not self._calls:
                if self._closed:
                    return None
                self._changed.wait()
            self._changed.notify_all()
            return self._calls.popleft()

    def _work(self) -> None:
        while (item := self._next()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call  # releases the media
