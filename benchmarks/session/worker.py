"""The process that does the steps."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.session.steps import Session
from dgpo_core.system.device import choose_device
from dgpo_core.training.memory import free

__all__ = ["FREED", "answer_steps", "serve"]

FREED = "freed"
"""Said after each answer: what the step held is free, and another may come."""


def serve(settings: Mapping[str, Any], connection: Connection) -> None:
    """Be the worker: leader of a process group, which is ended together with all processes that a step started."""
    os.setpgid(0, 0)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.stdout = sys.stderr  # the answers of the session are in its record
    answer_steps(settings, connection)


def answer_steps(settings: Mapping[str, Any], connection: Connection) -> None:
    """Do steps that come through the connection, and answer with their rows or their error, until None comes.

    Some errors of CUDA stay: each later call raises them too. So the answer, with the error, is sent before anything
    else is asked of the device; then the process ends with that error, or says `FREED`.
    """
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
        connection.send(answer)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        free()  # also of a step that failed, whose frames are gone by now
        connection.send(FREED)
