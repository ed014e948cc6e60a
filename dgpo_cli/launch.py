"""Several processes of one run: started together, ended together, one voice.

What torchrun does, and besides: mistakes are told once and end with exit code 2, a lost process is named with its
reason, and Ctrl-C saves. Each process is told who it is by torchrun's own environment variables.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO

from dgpo_core.system.stopping import stops_a_run

__all__ = ["Layout", "check", "launch"]

SAVING = 60.0
"""Seconds that the others have to save and end after one process has ended; then they are told to, and then killed."""
ENDING = 10.0
LOST = 3
"""Exit code of a process that has waited in vain for another one."""
TAIL = 20
"""Lines of a process's last words that are shown."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`processes` on this machine, which is number `machine` of `machines`; address: HOST:PORT of machine 0, where they
    meet (None: this machine, at any free port)."""

    processes: int
    machines: int = 1
    machine: int = 0
    address: str | None = None

    def environment(self, local_rank: int) -> dict[str, str]:
        """What torch.distributed and accelerate want to know of a process, as torchrun names it."""
        host, _, port = (self.address or "").rpartition(":")
        return {
            "RANK": str(self.machine * self.processes + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(self.machines * self.processes),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "GROUP_RANK": str(self.machine),
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }


def check(layout: Layout) -> None:
    """Raise UserError for options that do not go together, or inside of another launcher."""
    from dgpo_core.errors import UserError

    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "--processes: torchrun or accelerate launch has started this process already; leave --processes out, or "
            "start dgpo by itself"
        )
    if layout.machine >= layout.machines:
        raise UserError(
            f"--machine-rank: machines are numbered from 0 to {layout.machines - 1}, there is no {layout.machine}"
        )
    if layout.machines > 1 and layout.address is None:
        raise UserError("--address: several machines need to know where to meet: --address HOST:PORT of machine 0")
    host, _, port = (layout.address or "here:1").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--address: {layout.address!r} is not HOST:PORT, such as 10.0.0.1:29500")


def launch(layout: Layout, command: Sequence[str], program: Sequence[str] = ("-P", "-m", "dgpo_cli.child")) -> int:
    """Run `dgpo COMMAND` in every process of this machine; returns the exit code of the whole.

    Process 0 of machine 0 has the terminal; what the others say is kept and shown if they are the reason of a failure.
    """
    if layout.address is None:
        layout = Layout(layout.processes, layout.machines, layout.machine, f"127.0.0.1:{_free_port()}")
    with ExitStack() as files:
        logs: list[IO[bytes] | None] = []
        started: list[subprocess.Popen[bytes]] = []
        try:
            for local_rank in range(layout.processes):
                log = None if layout.machine == 0 and local_rank == 0 else files.enter_context(tempfile.TemporaryFile())
                logs.append(log)
                started.append(
                    subprocess.Popen(
                        [sys.executable, *program, str(os.getpid()), *command],
                        env=_threads(layout.processes) | os.environ | layout.environment(local_rank),
                        stdout=log,
                        stderr=None if log is None else subprocess.STDOUT,
                        process_group=0,  # what the terminal sends to ours reaches it once: through us
                    )
                )
            with _passing_on_signals(started):
                first = _end_together(started)
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return _told(layout, first, [process.returncode for process in started], logs)


def _end_together(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all of them; the number of the one whose end was the others' (None: all went well).

    A process that waits for a lost one learns of it by itself, saves if it is the main one, and ends. One that does not
    (its card waits) is made to.
    """
    first, deadline, steps = None, float("inf"), iter((signal.SIGTERM, signal.SIGKILL))
    while any(process.poll() is None for process in started):
        if first is None:
            first = _culprit(started)
            deadline = time.monotonic() + SAVING if first is not None else deadline
        elif time.monotonic() > deadline:
            number = next(steps, signal.SIGKILL)
            for process in started:
                if process.poll() is None:
                    process.send_signal(number)
            deadline = time.monotonic() + ENDING
        time.sleep(0.05)
    return _culprit(started)


def _culprit(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The process that failed, not one that failed because another one was lost, as long as there is a choice."""
    failed = [i for i, process in enumerate(started) if process.returncode]
    return next((i for i in failed if started[i].returncode != LOST), failed[0] if failed else None)


def _told(layout: Layout, first: int | None, codes: Sequence[int], logs: Sequence[IO[bytes] | None]) -> int:
    """Say which process was the reason of a failure, unless it has said so itself; the exit code."""
    if first is None:
        return 0
    code = codes[first]
    rank = layout.machine * layout.processes + first
    if code < 0:
        number = signal.Signals(-code).name
        sys.stderr.write(f"process {rank} of {layout.machines * layout.processes} was ended by {number}\n")
    log = logs[first]
    # A mistake is made in all of them, and the main process has told of it.
    if log is not None and not (codes[0] == code == 2 and layout.machine == 0):
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()[-TAIL:]
        if lines:
            sys.stderr.write(f"process {rank} said last:\n" + "".join(f"  {line}\n" for line in lines))
    if any(other == 130 for other in codes):
        return 130
    return code if code > 0 else 1


@contextmanager
def _passing_on_signals(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """What asks for a stop, and a Ctrl-Z, is for all of them."""

    def to_all(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                process.send_signal(number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    passed_on = [*stops_a_run(), signal.SIGTSTP, signal.SIGCONT]
    previous: dict[int, Callable[..., object] | int | None] = {
        number: signal.signal(number, to_all) for number in passed_on
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _threads(processes: int) -> dict[str, str]:
    """As torchrun does: threads of all processes together must not outnumber the cores."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
