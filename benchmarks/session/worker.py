"""The process that does the steps."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.session.steps import Session
from dgpo_core.system.device import choose_device
from dgpo_core.training.memory import free

__all__ = ["serve"]


def serve(settings: Mapping[str, Any], connection: Connection) -> None:
    """Do steps that come through the connection, and answer with their rows or their error, until None comes."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.stdout = sys.stderr  # the answers of the session are in its record
    device = choose_device(settings["device"])  # before anything is allocated there
    while (asked := connection.recv()) is not None:
        step, found = asked
        session = Session(
            device=device,
            tiny=settings["tiny"],
            directory=Path(settings["directory"]),
            counts=settings["counts"],
            found=found,
        )
        try:
            answer: dict[str, Any] = {"status": "done", "rows": [row.plain() for row in step.run(session)]}
        except Exception as error:
            traceback.print_exc()
            answer = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        free()  # also of a step that failed, whose frames are gone by now
        connection.send(answer)
