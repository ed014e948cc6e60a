"""The process that does the steps."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.session.steps import Session
from dgpo_core.system.device import choose_device

__all__ = ["serve"]


def serve(settings: Mapping[str, Any], connection: Connection) -> None:
    """Do steps that come through the connection, and answer with their rows or their error, until None comes."""
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
            with _measured(session):
                rows = [row.plain() for row in step.run(session)]
            answer: dict[str, Any] = {"status": "done", "rows": rows}
        except Exception as error:
            traceback.print_exc()
            answer = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        connection.send(answer)


@contextmanager
def _measured(session: Session) -> Iterator[None]:
    """Context of a step: it starts with the device's memory free, and leaves it so."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        yield
    finally:
        gc.collect()
        if session.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
