"""Several processes of one command: started together, ended together, one voice.

What torchrun does, and besides: mistakes are told once and end with exit code 2, a lost process is named with its
reason, and Ctrl-C saves. Each process is told who it is by torchrun's own environment variables.
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

__all__ = ["Layout", "check", "in_processes", "launch", "left_to_launcher"]

SAVING = 60.0
"""Seconds that the others have to save and end after one process has failed; then they are told to, and then killed."""
ENDING = 10.0
"""The same where there is nothing to save, and seconds from the first to the second."""
LOST = 3
"""Exit code of a process that has timed out waiting for another process."""
DEFERRED = 4
"""The same of one that leaves it to the launcher to say why."""
TAIL = 20
"""Lines of a process's last words that are shown."""

SOME = 16
"""Processes that any machine may start, however few its cores."""

LAUNCHED = "DGPO_LAUNCHED"
"""Variable of processes that `launch` has started: it tells of those that are lost."""


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
    if layout.processes > (most := max(SOME, os.cpu_count() or 1)):
        raise UserError(
            f"--processes: {layout.processes} exceed what this machine can use, one per GPU or one per few "
            f"CPU cores: at most {most}"
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


def in_processes(context: typer.Context, processes: int) -> None:
    """Run the command of `context` in so many processes instead, and exit as they do; nothing if it is one process."""
    if processes == 1:
        return
    import typer

    check(layout := Layout(processes))
    words, places = [], []
    for parameter in context.command.params:
        name, source = str(parameter.name), context.get_parameter_source(str(parameter.name))
        if name == "processes" or source is None or source.name != "COMMANDLINE":
            continue
        value = context.params[name]
        values = value if isinstance(value, list | tuple) else [value]
        if parameter.param_type_name == "argument":
            places += [str(one) for one in values]
        elif value is True:
            words.append(parameter.opts[0])
        else:
            words += [f"{parameter.opts[0]}={one}" for one in values]
    raise typer.Exit(launch(layout, [str(context.info_name), *words, "--", *places], patience=ENDING))


@contextmanager
def left_to_launcher() -> Iterator[None]:
    """A process that waited for a lost one says nothing where the launcher shows what the lost one has said."""
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
    """Run `dgpo COMMAND` in every process of this machine; returns the exit code of the whole.

    patience: seconds that the others have to end by themselves after one has failed: long where they have much to save.

    Process 0 of machine 0 has the terminal; what the others say is kept and shown if they are the reason of a failure.
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
            first = wait_for_all(children, patience=patience, grace=ENDING, consequences=(LOST, DEFERRED))
        return 0 if first is None else _failed(layout, first, children)


def _end(child: Child) -> None:
    if child.poll() is None:
        child.kill()


def _failed(layout: Layout, first: int, children: Sequence[Child]) -> int:
    """Say which process was the reason of a failure, unless it has said so itself; the exit code."""
    codes = [child.wait() for child in children]
    if codes[first] == DEFERRED and LOST in codes:  # each has waited for another one
        first = codes.index(LOST)
    code, rank = codes[first], layout.machine * layout.processes + first
    if code < 0:
        sys.stderr.write(f"process {rank} of {layout.machines * layout.processes} {fate(code)}\n")
    # A mistake is made in all of them, and the main process has told of it.
    lines = [] if codes[0] == code == 2 and layout.machine == 0 else children[first].last_lines(TAIL)
    if lines:
        sys.stderr.write(f"process {rank} said last:\n" + "".join(f"  {line}\n" for line in lines))
    if 130 in codes:
        return 130
    return code if code > 0 else 1


def _threads(processes: int) -> dict[str, str]:
    """As torchrun does: threads of all processes together must not outnumber the cores."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))} if processes > 1 else {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
