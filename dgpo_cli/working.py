"""Tell what a command is doing if it takes a while: a moving line on a terminal, else a line now and then.

Everything goes to standard error; standard output is for results. A thread tells, so that imports and other calls that
last for seconds need not.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Work", "is_first", "working"]

SOON = 1.0
"""Seconds before anything is shown on a terminal."""
PATIENCE = 30.0
"""Seconds before the first line without a terminal."""
AGAIN = 60.0
"""Seconds between the following lines."""
MOVES = 0.1
"""Seconds between two pictures on a terminal."""


class Work:
    """What a command is doing, and how much of it is done."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.done, self.total = 0, 0

    def say(self, text: str) -> None:
        """Do something else, of which nothing is counted yet."""
        self.text, self.done, self.total = text, 0, 0

    def count(self, done: int, total: int) -> None:
        """Tell how much is done."""
        self.done, self.total = done, total

    @property
    def counted(self) -> str:
        """What is done, as "3/12"; empty if nothing is counted."""
        return f"{self.done}/{self.total}" if self.total else ""

    def line(self, seconds: float) -> str:
        """Return a line for a file or a pipe."""
        from dgpo_schemas.text import clean

        return clean(", ".join(filter(None, (self.text, self.counted, f"{seconds:.0f} s so far"))))


def is_first() -> bool:
    """Return whether this is the first process of a launcher, or the only one; a wrong RANK is reported elsewhere."""
    return os.environ.get("RANK", "").strip() in ("", "0")


@contextmanager
def working(text: str, *, shown: bool = True) -> Iterator[Work]:
    """Context manager in which `text`, or what the Work is told, is shown; nothing if it ends at once.

    In a process of a launcher other than the first, and if not `shown`, nothing is. Cannot be nested.
    """
    work, over = Work(text), threading.Event()
    if not shown or not is_first():
        yield work
        return
    teller = threading.Thread(target=_tell, args=(work, over), name="progress", daemon=True)
    teller.start()
    try:
        yield work
    finally:
        over.set()
        teller.join()


def _tell(work: Work, over: threading.Event) -> None:
    started = time.monotonic()
    if over.wait(SOON):
        return
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        _on_terminal(work, over, console)
        return
    wait = PATIENCE - SOON
    while not over.wait(wait):
        print(work.line(time.monotonic() - started), file=sys.stderr, flush=True)  # noqa: T201
        wait = AGAIN


def _on_terminal(work: Work, over: threading.Event, console: Console) -> None:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from dgpo_schemas.text import clean

    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
        TextColumn("{task.fields[counted]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    # Standard output may be redirected in the meantime, which rich would undo at its end.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as shown:
        task = shown.add_task("", total=None, counted="")
        ended = False
        while not ended:
            ended = over.wait(MOVES)
            shown.update(
                task, description=clean(work.text), completed=work.done, total=work.total or None, counted=work.counted
            )
