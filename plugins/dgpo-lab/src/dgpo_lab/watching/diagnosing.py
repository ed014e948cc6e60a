"""Diagnoses of runs that grow: made beside the server, on a thread of their own, at most every few seconds each."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_lab.watching.status import IN_PROGRESS, LOGS, describe, status
from dgpo_schemas.problems import ConfigError

__all__ = ["Doctor", "examine"]

PAUSE = 10.0
"""Minimum seconds between two diagnoses of the same run."""
MOST = 16
"""Maximum number of runs whose diagnoses are kept."""
Signature = tuple[object, ...]


@dataclass(slots=True)
class _Kept:
    """The last diagnosis of a run. made: when, by the monotonic clock; signature: of the files that it was made of."""

    answer: dict[str, Any] = field(default_factory=lambda: {"pending": True})
    signature: Signature | None = None
    made: float = float("-inf")
    busy: bool = False


class Doctor:
    """Diagnoses runs for the page. A diagnosis imports torch and reads whole logs, so no request waits for it."""

    def __init__(self, examine: Callable[[Path], dict[str, Any]]) -> None:
        self._examine = examine
        self._kept: OrderedDict[Path, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()

    def ask(self, run: Path) -> dict[str, Any]:
        """Return the newest diagnosis, `{"pending": True}` before the first, and start another if the run has grown."""
        now, signature = time.monotonic(), _signature(run)
        with self._lock:
            kept = self._kept.setdefault(run, _Kept())
            self._kept.move_to_end(run)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
            if not kept.busy and kept.signature != signature and now - kept.made >= PAUSE:
                kept.busy = True
                threading.Thread(target=self._work, args=(run, kept, signature), daemon=True).start()
            return kept.answer

    def _work(self, run: Path, kept: _Kept, signature: Signature) -> None:
        with self._one_at_a_time:
            try:
                answer = self._examine(run)
            except (UserError, ConfigError) as error:
                answer = {"fault": str(error)}
            except Exception as error:  # a broken plugin must not end the page
                answer = {"fault": f"the diagnosis failed: {type(error).__name__}: {error}"}
        with self._lock:
            kept.answer, kept.signature, kept.made, kept.busy = answer, signature, time.monotonic(), False


def examine(run: Path) -> dict[str, Any]:
    """Diagnose a run as `dgpo doctor --json` does, without its lock. Raises UserError and ConfigError."""
    from dgpo_core.plugins.registry import get_registry
    from dgpo_lab.doctoring.diagnosis import diagnose
    from dgpo_lab.doctoring.facts import read_facts
    from dgpo_lab.doctoring.rendering import as_data, summary, trial

    running = status(run, describe(run)).state in IN_PROGRESS
    diagnosis = diagnose(read_facts(run, get_registry(), running=running))
    return {**as_data(diagnosis), "summary": summary(diagnosis), "trial": trial(diagnosis)}


def _signature(run: Path) -> Signature:
    found: list[object] = []
    for name in (*LOGS, "outcome.json", "config.yaml"):
        try:
            read = (run / name).stat()
            found.append((read.st_size, read.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)
