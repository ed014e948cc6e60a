"""Running cells: so many at once, each a process of its own; a failed one does not stop the others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dgpo_core.errors import UserError
from dgpo_core.system.files import open_to_append
from dgpo_core.system.reading import LARGEST_LOG, open_file, why
from dgpo_core.system.stopping import StopRequest
from dgpo_lab.ablation.directory import AblationDirectory, State, held, outcome_of
from dgpo_lab.ablation.plan import Cell, Plan
from dgpo_lab.ablation.progress import Watcher

__all__ = ["LOG", "Launch", "Process", "Resources", "choose_resources", "run_cells", "start"]

LOG = "train.log"
POLL = 0.1
"""Seconds between two looks at the processes."""


class Process(Protocol):
    """What is needed of subprocess.Popen."""

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it at once."""

    def wait(self) -> int:
        """Its exit code, when it has ended."""


class Launch(Protocol):
    """Starts `dgpo train` on a run file."""

    def __call__(self, file: Path, *, resume: bool, log: Path, environment: Mapping[str, str]) -> Process:
        """`environment` is set on top of this process's."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Cells at once; CUDA devices, in turn; CPU threads of a cell (None: its run file says, or torch decides)."""

    parallel: int
    devices: Sequence[str]
    threads: int | None

    def environment(self, slot: int) -> dict[str, str]:
        """For the process in a slot."""
        found = {}
        if self.devices:
            found["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        if self.threads is not None:
            found["OMP_NUM_THREADS"] = str(self.threads)
        return found


def choose_resources(plan: Plan, visible: Sequence[str]) -> Resources:
    """How the cells share the machine. `visible` are the CUDA devices there are, as CUDA_VISIBLE_DEVICES names them.

    Raises UserError for a device that is not there.
    """
    ablation = plan.ablation
    on_cpu = all(variant.config.run.device == "cpu" for variant in plan.variants)
    absent = [number for number in ablation.devices or () if number >= len(visible)]
    if absent:
        raise UserError(
            f"devices: there is no CUDA device {absent[0]}: "
            + (f"there are {len(visible)}, from 0" if visible else "there is none; leave the key out to use the CPU")
        )
    wanted = range(len(visible)) if ablation.devices is None else ablation.devices
    devices = [] if on_cpu else [visible[number] for number in wanted]
    parallel = ablation.parallel or max(1, len(devices))
    threads = None
    if not devices and parallel > 1 and ablation.threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // parallel)
    if ablation.devices == []:
        devices = [""]  # hides the devices there are
    return Resources(parallel, devices, threads)


def start(file: Path, *, resume: bool, log: Path, environment: Mapping[str, str]) -> Process:
    """A process in a session of its own, so that Ctrl-C reaches it once, through us, and not from the terminal too."""
    command = [sys.executable, "-P", "-m", "dgpo_cli.child", str(os.getpid()), "train", str(file)]
    try:
        output = os.fdopen(open_to_append(log), "ab")
    except OSError as error:
        raise UserError(f"cannot write {log}: {why(error)}") from error
    with output:
        return subprocess.Popen(
            [*command, *(["--resume"] if resume else [])],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )


def run_cells(
    plan: Plan,
    directory: AblationDirectory,
    resources: Resources,
    *,
    stop: StopRequest,
    progress: Watcher,
    launch: Launch = start,
) -> dict[str, State]:
    """Run what is not finished; what became of each cell, by its label.

    When a stop is asked for, running cells save and stop. A KeyboardInterrupt (a second Ctrl-C) ends them at once.
    """
    cells = list(plan.cells())
    states = {cell.label: directory.state(cell) for cell in cells}
    pending = [cell for cell in cells if states[cell.label].status != "finished"]
    running: dict[int, tuple[Cell, Process]] = {}
    told: set[str] = set()
    asked = False
    progress.started(plan, states)
    try:
        while pending or running:
            for slot, (cell, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    states[cell.label] = state = _ended(cell, code, stopping=asked)
                    directory.remember(cell, state)
                    progress.ended(cell, state)
            if stop.requested and not asked:
                asked = True
                pending.clear()
                for _, process in running.values():
                    process.terminate()
            for slot in (slot for slot in range(resources.parallel) if slot not in running):
                chosen = _next(pending, told, progress)
                if chosen is None:
                    break
                file, resume = directory.prepare(chosen)
                process = launch(file, resume=resume, log=chosen.path / LOG, environment=resources.environment(slot))
                running[slot] = (chosen, process)
                progress.began(chosen, resume=resume)
            progress.tick()
            time.sleep(POLL)
    except BaseException as error:
        for _, process in running.values():
            (process.kill if isinstance(error, KeyboardInterrupt) else process.terminate)()
        for _, process in running.values():
            process.wait()
        raise
    finally:
        progress.close()
    return states


def _next(pending: list[Cell], told: set[str], progress: Watcher) -> Cell | None:
    """The first cell that nobody uses; one that a process of a killed ablation still holds waits for its end."""
    for cell in pending:
        if cell.path.exists():
            try:
                with held(cell):
                    pass
            except UserError as error:
                if cell.label not in told:
                    told.add(cell.label)
                    progress.note(f"{error}; waiting for its end")
                continue
        pending.remove(cell)
        return cell
    return None


def _ended(cell: Cell, code: int, *, stopping: bool) -> State:
    outcome = outcome_of(cell)
    if outcome is not None and outcome.outcome == "finished" and outcome.ended_by is not None:
        return State("finished")
    if stopping or (outcome is not None and outcome.outcome == "interrupted"):
        return State("unfinished")
    why = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return State("failed", f"{_last_line(cell.path / LOG)} ({why})")


def _last_line(log: Path) -> str:
    try:
        with open_file(log, LARGEST_LOG) as handle:
            handle.seek(max(0, log.stat().st_size - 20_000))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
