"""Start child processes in process groups of their own, wait for them together, and terminate them reliably.

    child = Child(command, environment=variables, output=log.debug)
    child.terminate()  # SIGTERM to the process alone
    child.kill()  # SIGKILL to its process group

A child calls `end_with_parent`. Starting a child requires POSIX; importing this module does not.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from dgpo_core.system.portable import CONTINUE, SUSPEND, kill_group, new_group, read_at, suspend
from dgpo_core.system.stopping import stops_a_run

__all__ = ["LAUNCHER_VARIABLES", "Child", "culprit", "end_with_parent", "fate", "forwarding_signals", "wait_for_all"]

LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)  # fmt: skip
"""Variables by which a launcher sets the rank of a process; another child with them would wait for the other ranks."""
POLL = 0.05
"""Polling interval in seconds of `wait_for_all`."""
GRACE = 5.0
"""Timeout in seconds for the thread that reads a child's output."""
LONGEST_LINE = 65536
"""Maximum bytes kept of an incomplete line."""


class Child:
    """A process in a process group of its own, with empty standard input. Thread-safe.

    Signals of a terminal reach it only through its parent, and processes that it starts can be killed with it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        pass_fds: Sequence[int] = (),
        output: IO[bytes] | Callable[[str], object] | None = None,
        kept: int = 50,
    ) -> None:
        """Start the process. Raises OSError or ValueError if it cannot be started.

        environment: all of its variables (None: those of this process).
        output: the destination of both standard output and standard error: a file, which the caller closes; a function,
        called with each line on a thread, which must not raise; or None for the streams of this process.
        kept: number of last lines to keep of output that goes to a function.
        """
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            list(command),
            env=None if environment is None else dict(environment),
            cwd=directory,
            pass_fds=tuple(pass_fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if callable(output) else output,
            stderr=None if output is None else subprocess.STDOUT,
            **new_group(),
        )
        self._file = None if callable(output) else output
        self._reader = _Reader(self._process.stdout, output, kept) if callable(output) else None
        self._ending = threading.Lock()
        self._killed = False

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._process.pid

    @property
    def killed(self) -> bool:
        """Whether `kill` was called."""
        return self._killed

    def poll(self) -> int | None:
        """Return the exit code, the negative signal number if a signal ended it, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends and return its exit code. Raises TimeoutError after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"process {self.pid} is still running after {timeout:g} s") from error

    def signal(self, number: int) -> None:
        """Send a signal to the process, not to its children; does nothing if it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self.signal(signal.SIGTERM)

    def kill(self) -> int:
        """Send SIGKILL to the process group and return the exit code. May be called more than once."""
        with self._ending:
            if not self._killed:
                self._killed = True
                kill_group(self.pid)
                self._process.wait()
                if self._reader is not None:
                    self._reader.close()
        return self._process.wait()

    def last_lines(self, count: int) -> list[str]:
        """Return at most `count` last non-empty lines of the output; none if it went to the streams of this process."""
        if self._reader is not None:
            lines = self._reader.lines()
        elif self._file is not None:
            size = os.fstat(self._file.fileno()).st_size
            start = max(0, size - LONGEST_LINE)
            lines = read_at(self._file.fileno(), size - start, start).decode(errors="replace").splitlines()
        else:
            lines = []
        return [line for line in lines if line.strip()][-count:]


def fate(code: int) -> str:
    """Describe how a process ended: "exited with status 1", "was terminated by SIGSEGV"."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was terminated by {name}" + (", possibly because the system ran out of memory" * (name == "SIGKILL"))


def culprit(
    codes: Sequence[int | None], consequences: Collection[int] = (), harmless: Collection[int] = ()
) -> int | None:
    """Return the index of the process that failed, or None if none has.

    If several failed, the first whose exit code is not in `consequences`, the codes of failures caused by another
    process. Codes in `harmless` are no failures.
    """
    failed = [i for i, code in enumerate(codes) if code and code not in harmless]
    return next((i for i in failed if codes[i] not in consequences), failed[0] if failed else None)


def wait_for_all(
    children: Sequence[Child],
    *,
    patience: float,
    grace: float,
    consequences: Collection[int] = (),
    harmless: Collection[int] = (),
) -> int | None:
    """Wait until all children have ended; return the index of the one that failed (`culprit`), None if none failed.

    After a failure the others have `patience` seconds to end by themselves. Then they are sent SIGTERM, and killed
    `grace` seconds later.
    """
    first, deadline, terminated = None, float("inf"), False
    while any(child.poll() is None for child in children):
        if not terminated:  # the exit code of a terminated child does not tell what failed
            first = culprit([child.poll() for child in children], consequences, harmless)
        if first is not None and deadline == float("inf"):
            deadline = time.monotonic() + patience
        elif time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    (child.kill if terminated else child.terminate)()
            deadline, terminated = time.monotonic() + grace, True
        time.sleep(POLL)
    return first if terminated else culprit([child.poll() for child in children], consequences, harmless)


@contextmanager
def forwarding_signals(children: Sequence[Child]) -> Iterator[None]:
    """Forward signals that stop, suspend (Ctrl-Z) and continue this process to all children within the context.

    Use it on the main thread. `children` may grow within the context.
    """

    def to_all(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.signal(number)
        if number == SUSPEND:
            suspend()

    job_control = [number for number in (SUSPEND, CONTINUE) if number is not None]
    previous = {n: signal.signal(n, to_all) for n in [*stops_a_run(), *job_control]}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_with_parent(parent: int, end: Callable[[], object], every: float = 0.5) -> None:
    """Call `end` on a thread once the process `parent` has ended; checks every `every` seconds.

    To be called in a child: without it, children of a killed parent would keep running unnoticed.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Reader:
    """Passes the output of a process to a function, line by line on a thread, and keeps the last lines."""

    def __init__(self, stream: IO[bytes] | None, on_message: Callable[[str], object], kept: int) -> None:
        assert stream is not None
        self._stream = stream
        self._report = on_message
        self._closed = threading.Event()
        self._lines: deque[str] = deque(maxlen=kept)
        self._thread = threading.Thread(target=self._read, name="output of a process", daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        return list(self._lines)

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        rest = b""
        while True:
            # A process started by the child may keep the pipe open forever.
            if not poll.poll(0 if self._closed.is_set() else 200):
                if self._closed.is_set():
                    break
                continue
            data = os.read(self._stream.fileno(), LONGEST_LINE)
            if not data:
                break
            *complete, rest = (rest + data).split(b"\n")
            for line in complete:
                self._keep(line)
            rest = rest[-LONGEST_LINE:]
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._lines.append(text)
        self._report(text)

    def close(self) -> None:
        """Stop reading. Output printed so far is kept."""
        self._closed.set()
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._stream.close()
