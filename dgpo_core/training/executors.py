"""Threads that ask rewards, each reward's calls in a executor of their own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

__all__ = ["RewardExecutor", "wait_for"]

PATIENCE = 1.0
"""Seconds that closing gives to a reward which is at work; one that takes longer is left behind."""
LOOK = 0.1
"""Seconds between two looks at whether the run was asked to stop, while it waits for a reward to make room."""


def wait_for(future: Future[Any], interrupt: Callable[[], None]) -> None:
    """Until a call has ended, one way or another."""
    while not wait([future], timeout=LOOK).done:
        interrupt()


class RewardExecutor:
    """Threads that take calls in the order of their coming. Unlike an executor's, they keep no process alive whose
    reward hangs."""

    def __init__(self, threads: int, most: int | None = None) -> None:
        """most: calls that may wait when `wait_for_room` returns."""
        self._most = most
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name="reward", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call; the future has what it returns or raises."""
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the rewards are closed")
            self._calls.append((future, call))
            self._changed.notify_all()
        return future

    def wait_for_room(self, interrupt: Callable[[], None]) -> None:
        """Until at most `most` calls wait; `interrupt` is called now and then."""
        if self._most is None:
            return
        with self._changed:
            while len(self._calls) > self._most and not self._closed:
                if not self._changed.wait(LOOK):
                    interrupt()

    def discard(self) -> None:
        """Forget the calls that wait, and the media that they hold."""
        with self._changed:
            dropped = list(self._calls)
            self._calls.clear()
            self._changed.notify_all()
        for future, _ in dropped:
            future.cancel()

    def close(self) -> None:
        """End the threads once they have made every call."""
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
            del item, future, call  # media must not outlive their scores
