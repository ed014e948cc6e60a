"""Run cells in parallel, each in a separate process; a failed cell does not stop the others."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from dgpo_core.errors import UserError
from dgpo_core.system.forking import Forked
from dgpo_core.system.reading import LARGEST_LOG, open_file
from dgpo_core.system.stopping import StopRequest
from dgpo_core.system.supervising import Child, fate
from dgpo_lab.ablation.directory import AblationDirectory, State, held, outcome_of
from dgpo_lab.ablation.plan import Cell, Plan
from dgpo_lab.ablation.progress import Watcher
from dgpo_lab.ablation.starting import Launch, launching

__all__ = ["LOG", "Resources", "choose_resources", "run_cells"]

LOG = "train.log"
POLL = 0.1
"""Seconds between polls of the processes."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Concurrent cells; CUDA devices, used in turn; CPU threads per cell (None: the default)."""

    parallel: int
    devices: Sequence[str]
    threads: int | None

    @property
    def on_cpu(self) -> bool:
        """Whether cells use no CUDA device."""
        return not any(self.devices)

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment variables of the process in a slot."""
        found = {}
        if self.devices:
            found["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        if self.threads is not None:
            found["OMP_NUM_THREADS"] = str(self.threads)
        return found


def choose_resources(plan: Plan, visible: Sequence[str]) -> Resources:
    """Choose how the cells share the machine; `visible` are the CUDA devices as named in CUDA_VISIBLE_DEVICES.

    Raises UserError for a device that does not exist.
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


def run_cells(
    plan: Plan,
    directory: AblationDirectory,
    resources: Resources,
    *,
    stop: StopRequest,
    progress: Watcher,
    launch: Launch | None = None,
) -> dict[str, State]:
    """Run the unfinished cells and return the state of each cell by its label.

    launch: starts a cell's process (None: as `launching` chooses). On a stop request, running cells save and stop. A
    KeyboardInterrupt (a second Ctrl-C) kills them immediately.
    """
    cells = list(plan.cells())
    states = {cell.label: directory.state(cell) for cell in cells}
    pending = [cell for cell in cells if states[cell.label].status != "finished"]
    progress.started(plan, states)
    chosen = launching(on_cpu=resources.on_cpu, say=progress.say) if launch is None else nullcontext(launch)
    try:
        with chosen as launch:
            _run(pending, states, directory, resources, stop, progress, launch)
    finally:
        progress.close()
    return states


def _run(
    pending: list[Cell],
    states: dict[str, State],
    directory: AblationDirectory,
    resources: Resources,
    stop: StopRequest,
    progress: Watcher,
    launch: Launch,
) -> None:
    """Run the cells of `pending`, which it empties; their states go to `states`."""
    running: dict[int, tuple[Cell, Child | Forked]] = {}
    reported: set[str] = set()
    asked = False
    try:
        while pending or running:
            for slot, (cell, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[slot]
                    states[cell.label] = state = _ended(cell, code, stopping=asked or _is_lost(process))
                    if state.status == "unfinished" and _is_lost(process) and not asked:
                        pending.insert(0, cell)
                    directory.remember(cell, state)
                    progress.ended(cell, state)
            if stop.requested and not asked:
                asked = True
                pending.clear()
                for _, process in running.values():
                    process.terminate()
            for slot in (slot for slot in range(resources.parallel) if slot not in running):
                chosen = _next(pending, reported, progress)
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


def _is_lost(process: Child | Forked) -> bool:
    """Whether a process was stopped by the end of the server that had forked it."""
    return isinstance(process, Forked) and process.lost


def _next(pending: list[Cell], reported: set[str], progress: Watcher) -> Cell | None:
    """Remove and return the first cell that no other process uses, such as one left by a killed ablation."""
    for cell in pending:
        if cell.path.exists():
            try:
                with held(cell):
                    pass
            except UserError as error:
                if cell.label not in reported:
                    reported.add(cell.label)
                    progress.say(f"{error}; waiting for its end")
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
    return State("failed", f"{_last_line(cell.path / LOG)} ({fate(code)})")


def _last_line(log: Path) -> str:
    try:
        with open_file(log, LARGEST_LOG) as handle:
            handle.seek(max(0, log.stat().st_size - 20_000))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
