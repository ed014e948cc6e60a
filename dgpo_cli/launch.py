"""Launch one command in several processes.

Works like torchrun, and in addition: user errors are printed once and end with exit code 2, a lost process is named
with the reason, and Ctrl-C saves. The processes get torchrun's environment variables.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgpo_core.system.supervising import Child, fate, forwarding_signals, wait_for_all

if TYPE_CHECKING:
    import typer

__all__ = ["PREEMPTED", "Layout", "check", "in_processes", "launch", "left_to_launcher"]

SAVING = 60.0
"""Seconds after a process has failed until the other processes, which may be saving, are terminated."""
ENDING = 10.0
"""The same if there is nothing to save, and seconds between termination and kill."""
LOST = 3
"""Exit code of a process that timed out waiting for another process."""
DEFERRED = 4
"""Exit code of a process that timed out and leaves the error message to the launcher."""
PREEMPTED = 75
"""Exit code of a run that a signal other than Ctrl-C stopped before its last iteration, after it saved its state
(EX_TEMPFAIL of sysexits.h: try again later)."""
TAIL = 20
"""Number of lines of a failed process's output that are shown."""

SOME = 16
"""Number of processes that any machine may start, even with fewer cores."""

LAUNCHED = "DGPO_LAUNCHED"
"""Environment variable of processes started by `launch`, which reports lost processes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """`processes` on this machine, which is number `machine` of `machines`; address: HOST:PORT of machine 0, for the
    rendezvous (None: any free port of this machine)."""

    processes: int
    machines: int = 1
    machine: int = 0
    address: str | None = None

    def environment(self, local_rank: int) -> dict[str, str]:
        """Return the environment variables that torch.distributed and accelerate read, named as by torchrun."""
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
    """Raise UserError for options that cannot be combined, or inside another launcher."""
    from dgpo_core.errors import UserError

    if "WORLD_SIZE" in os.environ:
        raise UserError(
            "--processes: this process was started by torchrun or accelerate launch; leave --processes out, or "
            "start dgpo without them"
        )
    if layout.processes > (most := max(SOME, os.cpu_count() or 1)):
        raise UserError(
            f"--processes: {layout.processes} is too many for this machine; use one per GPU, or one per few CPU cores: "
            f"at most {most}"
        )
    if layout.machine >= layout.machines:
        raise UserError(f"--machine-rank: must be from 0 to {layout.machines - 1}, got {layout.machine}")
    if layout.machines > 1 and layout.address is None:
        raise UserError("--address: required with several machines: --address HOST:PORT of machine 0")
    host, _, port = (layout.address or "here:1").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--address: {layout.address!r} is not HOST:PORT, such as 10.0.0.1:29500")


def in_processes(context: typer.Context, processes: int) -> None:
    """Run the command of `context` in this many processes and exit with their exit code; do nothing for one process."""
    if processes == 1:
        return
    import typer

    check(layout := Layout(processes))
    flags, positional = [], []
    for parameter in context.command.params:
        name, source = str(parameter.name), context.get_parameter_source(str(parameter.name))
        if name == "processes" or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            positional += [str(item) for item in values]
        elif value is True:
            flags.append(parameter.opts[0])
        else:
            flags += [f"{parameter.opts[0]}={item}" for item in values]
    raise typer.Exit(launch(layout, [str(context.info_name), *flags, "--", *positional], patience=ENDING))


@contextmanager
def left_to_launcher() -> Iterator[None]:
    """Context manager: rank 0 exits silently if another process is lost, because the launcher shows its output."""
    from dgpo_core.errors import ProcessLostError

    try:
        yield
    except ProcessLostError:
        if os.environ.get("RANK") == "0" and LAUNCHED in os.environ:
            sys.exit(DEFERRED)
        raise


def launch(
    layout: Layout,
    command: Sequence[str],
    program: Sequence[str] = ("-P", "-m", "dgpo_cli.child"),
    patience: float = SAVING,
) -> int:
    """Run `dgpo COMMAND` in every process of this machine and return the exit code.

    patience: seconds that the other processes have to exit by themselves after one has failed; long if they have much
    to save.

    Process 0 of machine 0 uses the terminal; the output of the others is shown only if they cause a failure.
    """
    if layout.address is None:
        layout = Layout(layout.processes, layout.machines, layout.machine, f"127.0.0.1:{_free_port()}")
    with ExitStack() as ending:
        children: list[Child] = []
        for local_rank in range(layout.processes):
            quiet = layout.machine > 0 or local_rank > 0
            child = Child(
                [sys.executable, *program, str(os.getpid()), *command],
                environment=_threads(layout.processes) | os.environ | layout.environment(local_rank) | {LAUNCHED: "1"},
                output=ending.enter_context(tempfile.TemporaryFile()) if quiet else None,
            )
            ending.callback(_end, child)
            children.append(child)
        with forwarding_signals(children):
            first = wait_for_all(
                children, patience=patience, grace=ENDING, consequences=(LOST, DEFERRED), harmless=(PREEMPTED,)
            )
        if first is not None:
            return _failed(layout, first, children)
        return PREEMPTED if PREEMPTED in [child.wait() for child in children] else 0


def _end(child: Child) -> None:
    if child.poll() is None:
        child.kill()


def _failed(layout: Layout, first: int, children: Sequence[Child]) -> int:
    """Report the process that caused a failure, unless it has printed the error itself; return the exit code."""
    codes = [child.wait() for child in children]
    if codes[first] == DEFERRED and LOST in codes:  # processes waited for each other
        first = codes.index(LOST)
    code, rank = codes[first], layout.machine * layout.processes + first
    if code < 0:
        sys.stderr.write(f"process {rank} of {layout.machines * layout.processes} {fate(code)}\n")
    # A user error occurs in all processes, and the main process has printed it.
    lines = [] if codes[0] == code == 2 and layout.machine == 0 else children[first].last_lines(TAIL)
    if lines:
        sys.stderr.write(f"last output of process {rank}:\n" + "".join(f"  {line}\n" for line in lines))
    if 130 in codes:
        return 130
    return code if code > 0 else 1


def _threads(processes: int) -> dict[str, str]:
    """Limit the threads of all processes together to the number of cores, as torchrun does."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
