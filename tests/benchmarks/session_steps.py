"""Steps for tests of the runner."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.session.steps import Row, Session

__all__ = ["fails", "hangs", "tells"]


def tells(session: Session) -> list[Row]:
    """Say what earlier steps found."""
    before = session.value("half")
    return [Row("half", 0.5), Row("name", "a"), Row("found before", -1.0 if before is None else before, bound=0.0)]


def fails(session: Session) -> list[Row]:
    """Raise an error."""
    raise ValueError("no\nsecond line")


def hangs(session: Session) -> list[Row]:
    """Take too long, as does a process that it started."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (session.directory / "child").write_text(str(child.pid), encoding="utf-8")
    time.sleep(600)
    return []
