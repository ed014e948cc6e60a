"""A thread beside the event loop for bounded but slow work: parsing JSON from untrusted clients."""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

__all__ = ["Aside"]

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """Runs calls in one thread.

    Several threads that parse JSON would starve the event loop of the GIL. It is a daemon thread, unlike those of
    asyncio's executor, so that it does not keep the process alive.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="aside", daemon=True).start()

    async def __call__(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """Run the function in the thread. Returns or raises what it does. Cancelled calls are skipped."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*arguments, **keywords)))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Stop the thread after the queued calls."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    traceback.clear_frames(error.__traceback__)  # free the body now, in this thread
                    future.set_exception(error)
            del item, future, call  # a body must not outlive its request
