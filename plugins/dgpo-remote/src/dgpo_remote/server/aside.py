"""A thread beside the event loop for what is bounded but takes a while: reading the JSON of strangers."""

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
    """One thread: several that read JSON at once would keep the interpreter's lock from the event loop in turn. A
    daemon, unlike those of asyncio's executor: no process stays alive for it."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._work, name="aside", daemon=True).start()

    async def __call__(self, function: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
        """What the function returns or raises. Calls whose caller has gone are left out."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: function(*arguments, **keywords)))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the thread after the calls that wait."""
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    traceback.clear_frames(error.__traceback__)  # what was read must not wait to be collected elsewhere
                    future.set_exception(error)
            del item, future, call  # a body must not outlive its request
