"""Child processes: started in a process group of their own, watched together, and ended, whatever state they are in.

    child = Child(command, environment=variables, output=log.debug)
    child.terminate()  # SIGTERM to it alone
    child.kill()  # SIGKILL to its whole group

The child's side is `end_with_parent`. Needs POSIX when a child is started, not when this module is imported.
"""

from __future__ import annotations

import contextlib
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

from dgpo_core.system.stopping import stops_a_run

__all__ = ["LAUNCHER_VARIABLES", "Child", "culprit", "end_with_parent", "fate", "forwarding_signals", "wait_for_all"]

LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)  # fmt: skip
"""Variables with which a launcher makes a process one of many; another child that had them would wait for the rest."""
POLL = 0.05
"""Seconds between two looks at processes that are waited for together."""
GRACE = 5.0
"""Seconds that the reader of a child's output is given to end."""
LONGEST_LINE = 65536
"""Bytes of a line that has no end yet which are kept."""


class Child:
    """A process in a process group of its own, so that what a terminal sends reaches it through its parent alone, and
    what it starts can be ended with it. Its standard input is empty. May be used from any thread."""

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
        """Start it. Raises OSError or ValueError if that cannot be.

        environment: all of its variables (None: those of this process).
        output: where its standard output and standard error go, both: to a file, which stays open in the caller's
        hands; line by line to a function, which is called on a thread and may raise nothing; or (None) to those of this
        process. kept: so many last lines are remembered of what goes to a function.
        """
        self._process = subprocess.Popen(
            list(command),
            env=None if environment is None else dict(environment),
            cwd=directory,
            pass_fds=tuple(pass_fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if callable(output) else output,
            stderr=None if output is None else subprocess.STDOUT,
            process_group=0,
        )
        self._file = None if callable(output) else output
        self._reader = _Reader(self._process.stdout, output, kept) if callable(output) else None
        self._ending = threading.Lock()
        self._killed = False

    @property
    def pid(self) -> int:
        """Its number, and that of its group."""
        return self._process.pid

    @property
    def killed(self) -> bool:
        """Whether `kill` was called."""
        return self._killed

    def poll(self) -> int | None:
        """Its exit code, that of the signal that ended it as a negative number; None while it runs."""
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The same once it has ended. Raises TimeoutError after so many seconds."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"process {self.pid} runs on after {timeout:g} s") from error

    def signal(self, number: int) -> None:
        """Send a signal to it, not to what it has started; nothing if it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end, as SIGTERM does."""
        self.signal(signal.SIGTERM)

    def kill(self) -> int:
        """End it and everything that it has started, at once; its exit code. May be called again."""
        with self._ending:
            if not self._killed:
                self._killed = True
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
                if self._reader is not None:
                    self._reader.close()
        return self._process.wait()

    def last_lines(self, count: int) -> list[str]:
        """The last lines of its output that are not empty, at most so many; none of what went to this process's."""
        if self._reader is not None:
            lines = self._reader.lines()
        elif self._file is not None:
            size = os.fstat(self._file.fileno()).st_size
            start = max(0, size - LONGEST_LINE)
            lines = os.pread(self._file.fileno(), size - start, start).decode(errors="replace").splitlines()
        else:
            lines = []
        return [line for line in lines if line.strip()][-count:]


def fate(code: int) -> str:
    """How a process ended, in words: "exited with status 1", "was ended by SIGSEGV"."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was ended by {name}" + (": perhaps by the system, for want of memory" if name == "SIGKILL" else "")


def culprit(codes: Sequence[int | None], consequences: Collection[int] = ()) -> int | None:
    """Which of several processes has failed; not, while there is a choice, one whose exit code says that it failed
    because another one did (`consequences`). None if none has."""
    failed = [i for i, code in enumerate(codes) if code]
    return next((i for i in failed if codes[i] not in consequences), failed[0] if failed else None)


def wait_for_all(
    children: Sequence[Child], *, patience: float, grace: float, consequences: Collection[int] = ()
) -> int | None:
    """Wait until all children have ended; the number of the first that failed (`culprit`), None if all went well.

    When one has failed the others have `patience` seconds to end by themselves; then they are asked to, and killed
    after `grace` seconds more.
    """
    first, deadline, asked = None, float("inf"), False
    while any(child.poll() is None for child in children):
        if not asked:  # how one ends that was asked to says nothing
            first = culprit([child.poll() for child in children], consequences)
        if first is not None and deadline == float("inf"):
            deadline = time.monotonic() + patience
        elif time.monotonic() > deadline:
            for child in children:
                if child.poll() is None:
                    (child.kill if asked else child.terminate)()
            deadline, asked = time.monotonic() + grace, True
        time.sleep(POLL)
    return first if asked else culprit([child.poll() for child in children], consequences)


@contextmanager
def forwarding_signals(children: Sequence[Child]) -> Iterator[None]:
    """Send to all children what asks this process to stop, to pause (Ctrl-Z) and to go on, while the context lasts.
    For the main thread; `children` may grow meanwhile."""

    def to_all(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.signal(number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    previous = {n: signal.signal(n, to_all) for n in [*stops_a_run(), signal.SIGTSTP, signal.SIGCONT]}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def end_with_parent(parent: int, end: Callable[[], object], every: float = 0.5) -> None:
    """To be called in a child: `end` is called, on a thread, when the process `parent` is gone, which is looked for
    every so many seconds. Without this a killed parent would leave children behind that go on unseen."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


class _Reader:
    """Gives what a process prints to a function, line by line on a thread, and remembers the last lines."""

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
            # Somebody that the process started may keep the pipe open for ever.
            if not poll.poll(0 if self._closed.is_set() else 200):
                if self._closed.is_set():
                    break
                continue
            data = os.read(self._stream.fileno(), LONGEST_LINE)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                self._keep(line)
            rest = rest[-LONGEST_LINE:]
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._lines.append(text)
        self._report(text)

    def close(self) -> None:
        """What was printed so far is kept."""
        self._closed.set()
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._stream.close()
