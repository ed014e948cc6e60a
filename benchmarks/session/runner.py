"""Run the steps one after the other, each with its limit, in a worker process that is replaced when one overruns.

The record is written after each step, so that whatever ends the session leaves what was measured so far.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.session.steps import TOTAL, Step
from benchmarks.session.worker import FREED, serve

__all__ = ["run_steps"]

LEAST = 5.0
"""Seconds that must be left for a step to be started."""
FREEING = 10.0
"""Seconds in which a worker frees what a step held."""
Say = Callable[[str], None]


class _Worker:
    """A process that does steps."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(dict(settings), other), daemon=True)
        self.process.start()
        other.close()

    def ask(self, step: Step, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Let it do a step; returns its answer, or that there was none in time."""
        try:
            self.connection.send((step, dict(found)))
            if self.connection.poll(seconds):
                answer: dict[str, Any] = self.connection.recv()
                return answer
        except (EOFError, OSError):
            self.process.join(5)
            return {"status": "failed", "error": f"the process ended with code {self.process.exitcode}"}
        return {"status": "timed out"}

    def goes_on(self) -> bool:
        """Return whether it has freed what the step held and can do another one."""
        try:
            return self.connection.poll(FREEING) and self.connection.recv() == FREED
        except (EOFError, OSError):
            return False

    def end(self) -> None:
        """End it and all processes that it started, whatever they do."""
        if self.process.pid is not None:
            with suppress(ProcessLookupError):  # it has no group yet, or nothing of it is left
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_steps(
    steps: Sequence[Step], settings: Mapping[str, Any], output: Path, *, started: float | None = None,
    total: float = TOTAL, say: Say = lambda text: None,
) -> dict[str, Any]:  # fmt: skip
    """Run the steps and return the record, which is in `output` after each.

    settings: fields of the `Session` that the worker makes; started: time.time() when the session began; total: seconds
    from then on, after which no step is at work; limits are in proportion to it. A step's status is "done", "failed"
    (with its error), "timed out" or "left out".
    """
    started = time.time() if started is None else started
    record: dict[str, Any] = {"started": started, "total": total, "settings": dict(settings), "steps": {}}
    worker: _Worker | None = None
    try:
        for step in steps:
            left = started + total - time.time()
            if left < LEAST:
                answer, spent = {"status": "left out", "error": f"{max(left, 0):.0f} s were left"}, 0.0
            else:
                worker = worker or _Worker(settings)
                found = {name: done.get("rows", []) for name, done in record["steps"].items()}
                began = time.monotonic()
                answer = worker.ask(step, found, min(step.seconds * total / TOTAL, left))
                spent = time.monotonic() - began
                if answer["status"] == "timed out" or not worker.goes_on():
                    worker.end()
                    worker = None
            record["steps"][step.name] = {**answer, "seconds": spent, "limit": step.seconds * total / TOTAL}
            record["seconds"] = time.time() - started
            _write(output, record)
            say(_line(step, record["steps"][step.name]))
    finally:
        if worker is not None:
            with suppress(OSError):
                worker.connection.send(None)
            worker.process.join(2)
            worker.end()
    return record


def _write(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _line(step: Step, done: Mapping[str, Any]) -> str:
    failed = [row["what"] for row in done.get("rows", ()) if row.get("passed") is False]
    text = f"{step.name:<22}{done['status']:<10}{done['seconds']:>7.1f} s of {done['limit']:.0f}"
    if done.get("error"):
        text += f"  {done['error'].splitlines()[0]}"
    return text + (f"  beyond its bound: {', '.join(failed)}" if failed else "")
