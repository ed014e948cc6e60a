"""A side in a process of its own."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.peers.pace import Enough, Pace, fail
from benchmarks.peers.work import Work

__all__ = ["run_side"]


def run_side(module: str, path: Path | None, work: Work, checkpoint: Path, log: Path, connection: Connection) -> None:
    """Drive the loop of an adapter module on one thread; what it prints goes to a log."""
    with log.open("w", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        pace = Pace(connection, device)
        try:
            with tempfile.TemporaryDirectory() as directory:
                importlib.import_module(module).drive(path, work, checkpoint, Path(directory), pace, device)
        except Enough:
            pass
        except BaseException as error:
            traceback.print_exc()
            fail(connection, f"{type(error).__name__}: {error}".splitlines()[0])
