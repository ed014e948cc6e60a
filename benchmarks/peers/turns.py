"""Take turns: one iteration of every side, again and again, so that what else the machine does meets all."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.peers.child import run_side
from benchmarks.peers.work import Work, make_checkpoint
from dgpo_core.errors import UserError

__all__ = ["MERGED", "OURS", "SIDES", "Side", "take_turns"]


@dataclass(frozen=True)
class Side:
    """A loop: its name for people, the module that drives it, and what of it is called and replaced."""

    name: str
    module: str
    note: str = ""


OURS, MERGED = "dgpo", "dgpo-merged"
SIDES = {
    OURS: Side("dgpo", "benchmarks.peers.ours", "dgpo: `Trainer` with the published recipe at this size."),
    MERGED: Side(
        "dgpo, merged",
        "benchmarks.peers.ours_merged",
        "dgpo, merged: with `rollout.merge_adapter`, which in float32 changes samples by roundings alone.",
    ),
    "authors": Side(
        "the authors' script",
        "benchmarks.peers.authors",
        "The authors' script: `main` of `scripts/train_sd3_dgpo.py`, whole, with its configuration for GenEval at this "
        "size. Replaced: wandb and matplotlib, the scheduler's settings that it would download, the T5 length that it "
        "states, its reward. Its process wraps no model for data parallelism, which it would on several GPUs.",
    ),
    "flow-factory": Side(
        "Flow-Factory",
        "benchmarks.peers.flow_factory",
        "Flow-Factory: `load_trainer` and `start` of its DGPO trainer, with its example for SD3.5 at this size. "
        "Replaced: the data set on disk by the same rows in memory, the autocast to bfloat16 that it enters in any "
        "case, its reward. Trained weights and stored latents are float32 here, bfloat16 and float16 by its defaults. "
        "Its solver is Euler's method, the others' DPM-Solver++, with as many passes.",
    ),
}


class _Process:
    """A side at work, in a process of its own."""

    def __init__(self, key: str, path: Path | None, work: Work, checkpoint: Path, directory: Path) -> None:
        self.key, self.log = key, directory / f"{key}.log"
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, other = context.Pipe()
        arguments = (SIDES[key].module, path, work, checkpoint, self.log, other)
        self.process = context.Process(target=run_side, args=arguments, daemon=True)
        self.process.start()
        other.close()

    def answer(self) -> dict[str, Any]:
        """Return the next message. Raises UserError if the side has failed."""
        try:
            found: dict[str, Any] = self.connection.recv()
        except EOFError:
            found = {"failed": "the process ended"}
        if "failed" in found:
            lines = self.log.read_text(encoding="utf-8").splitlines()[-30:]
            sys.stderr.write("\n".join(lines) + "\n")
            raise UserError(f"{SIDES[self.key].name} does not run here: {found['failed']}")
        return found

    def iterate(self) -> dict[str, Any]:
        """Let it do one iteration; returns what that took."""
        self.connection.send("go")
        return self.answer()

    def end(self) -> None:
        """End it, if it has not ended by itself."""
        with suppress(OSError):
            self.connection.send("enough")
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
        self.connection.close()


def take_turns(work: Work, paths: Mapping[str, Path | None], turns: int) -> dict[str, list[dict[str, Any]]]:
    """Return the iterations of each side, without a first one that warms it up. paths: of each side's code, in the
    order of their turns, which starts one side later each time."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(work, Path(directory) / "checkpoint")
        with _started(work, paths, checkpoint, Path(directory)) as sides:
            for side in sides:
                side.iterate()
            found: dict[str, list[dict[str, Any]]] = {side.key: [] for side in sides}
            for turn in range(turns):
                first = turn % len(sides)
                for side in sides[first:] + sides[:first]:
                    found[side.key].append(side.iterate())
    return found


@contextmanager
def _started(
    work: Work, paths: Mapping[str, Path | None], checkpoint: Path, directory: Path
) -> Iterator[list[_Process]]:
    sides: list[_Process] = []
    try:
        for key, path in paths.items():  # one after the other: loading is no part of the comparison
            sides.append(_Process(key, path, work, checkpoint, directory))
            sides[-1].answer()
        yield sides
    finally:
        for side in sides:
            side.end()
