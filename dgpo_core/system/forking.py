"""Fork processes from a server that has already imported what they import.

    with ForkServer([sys.executable, "-m", MODULE], environment=variables) as server:
        process = server.start(["train", "run.yaml"], output=log)

MODULE calls `serve` with the file descriptor that is its last argument. A forked process begins as a fresh one would,
apart from the imported modules: alone in its process group and without other threads. When it ends, it tells what it
has imported (`Job.running`), and the server imports the same before it forks the next one. So the first process
starts cold, and nobody has to know what the next ones need.

The server reaps a process only when asked how it ended. Until then, its process id cannot be given to another one.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from dgpo_core.system.portable import can_fork, fork, kill_group, threads
from dgpo_core.system.supervising import Child

__all__ = ["ForkServer", "Forked", "Job", "NotForked", "ServerLost", "can_fork", "serve", "why_not_forkable"]

LARGEST = 2**17
"""Bytes of a message."""
POLL = 0.05
"""Seconds between polls of a process that is waited for."""


class ServerLost(Exception):
    """The server has ended."""


class NotForked(Exception):
    """The server cannot fork, such as because a library has started threads."""


class ForkServer:
    """The server's process, as seen by the process that started it. Not thread-safe."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str]) -> None:
        """Start the server, to whose command its file descriptor is added. Raises OSError if it cannot be started."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull, "ab") as nowhere:
            number = theirs.fileno()
            self._server = Child([*command, str(number)], environment=environment, pass_fds=[number], output=nowhere)
        self._requests = 0

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    def start(self, arguments: Sequence[str], *, output: IO[bytes]) -> Forked:
        """Fork a process that runs a command line; `output` is its standard output and error.

        Raises NotForked if the server cannot fork, and ServerLost if it has ended.
        """
        alive, theirs = os.pipe()  # at its end when the process has ended
        try:
            answer = self.ask({"start": list(arguments)}, [output.fileno(), theirs])
            if "pid" not in answer:
                raise NotForked(answer.get("reason"))
        except BaseException:
            os.close(alive)
            raise
        finally:
            os.close(theirs)
        return Forked(self, int(answer["pid"]), alive)

    def ask(self, request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        """Send a request and wait for the answer. Raises ServerLost."""
        self._requests += 1
        try:
            socket.send_fds(self._socket, [json.dumps({**request, "number": self._requests}).encode()], descriptors)
            while answer := self._socket.recv(LARGEST):
                found: dict[str, Any] = json.loads(answer)
                if found["number"] == self._requests:  # others are of requests that Ctrl-C interrupted
                    return found
        except OSError:
            pass
        raise ServerLost

    def close(self) -> None:
        """End the server. Processes that it has forked save and stop."""
        self._socket.close()
        self._server.wait()


class Forked:
    """A process forked by a server, with the interface of `Child`. Not thread-safe."""

    def __init__(self, server: ForkServer, pid: int, alive: int) -> None:
        self.pid = pid
        self.lost = False
        """Whether the process ended after the server, so that nobody knows how."""
        self._server, self._alive = server, alive
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, the negative signal number if a signal ended it, or None while it runs.

        If it is lost, the code is that of SIGTERM.
        """
        if self._code is not None:
            return self._code
        try:
            self._code = self._server.ask({"poll": self.pid})["code"]
        except ServerLost:
            if select.select([self._alive], [], [], 0)[0]:
                self._code, self.lost = -signal.SIGTERM, True
        if self._code is not None:
            os.close(self._alive)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends and return its exit code. Raises TimeoutError after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"process {self.pid} is still running after {timeout:g} s")
            time.sleep(POLL)
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the process, not to its children; does nothing if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        self.signal(signal.SIGTERM)

    def kill(self) -> int:
        """Send SIGKILL to the process group and return the exit code. May be called more than once."""
        if self._code is None:
            kill_group(self.pid)
        return self.wait()


class _Ending:
    """Called after all other functions that are registered with `atexit`, once the threads have ended.

    It ends a forked process without the end of the interpreter, which would write to, and so copy, most pages that the
    process shares with the server: half a second with torch.
    """

    code: int | None = None
    """The exit code; None leaves the process to the interpreter."""

    def __call__(self) -> None:
        if self.code is None:
            return
        with contextlib.suppress(Exception):
            logging.shutdown()
        for one in [sys.stdout, sys.stderr, *filter(_is_written, gc.get_objects())]:
            with contextlib.suppress(Exception):  # closed, or its disk is full
                one.flush()
        os._exit(self.code)


def _is_written(one: object) -> bool:
    """Return whether it is a file that the end of the interpreter would flush. Files opened by the server are none."""
    return issubclass(type(one), (io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper))


@dataclass(frozen=True, slots=True)
class Job:
    """What a forked process is to do."""

    arguments: list[str]
    server: int
    """The process id of the server, which is its parent."""
    notes: int
    """File descriptor of the file in which the server reads what was imported."""
    ending: _Ending

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context manager for the job: at its end it notes which modules were imported within, in their order."""
        before = set(sys.modules)
        try:
            yield
            self.ending.code = 0
        except SystemExit as end:
            self.ending.code = end.code if isinstance(end.code, int) else int(end.code is not None)
            raise
        finally:
            names = [name for name, module in list(sys.modules.items()) if name not in before and _has_name(module)]
            with contextlib.suppress(OSError):
                os.write(self.notes, json.dumps(names).encode())


def _has_name(module: Any) -> bool:
    """Return whether an import has found a module, so that it can be imported by its name."""
    return isinstance(getattr(getattr(module, "__spec__", None), "name", None), str)


def serve(descriptor: int, imported: Callable[[list[str]], str | None]) -> Job | None:
    """Answer the requests of a `ForkServer`; return a job in each forked process, and None when no requests come.

    imported: imports modules and returns why this process cannot be forked any more, or None.
    """
    atexit.register(ending := _Ending())  # first, therefore called last
    notes: dict[int, int] = {}
    ended: dict[int, int] = {}  # an answer may be lost with the request that a signal interrupted
    pending: list[str] = []
    refusal: str | None = None
    with socket.socket(fileno=descriptor) as connection:
        connection.set_inheritable(False)
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, LARGEST, 2)
            if not message:
                return None
            for one in descriptors:
                os.set_inheritable(one, False)
            request = json.loads(message)
            answer: dict[str, Any]
            if "poll" in request:
                polled = request["poll"]
                if polled in notes and (code := _code(polled)) is not None:
                    ended[polled] = code
                    pending += _noted(notes.pop(polled))
                answer = {"code": ended.get(polled)}
            else:
                if refusal is None and pending:
                    refusal, pending = imported(pending), []
                answer = {"reason": refusal}
                if refusal is None:
                    server, found = os.getpid(), _forked()
                    if isinstance(found, str):
                        answer = {"reason": found}
                    else:
                        pid, note = found
                        if not pid:
                            for other in (connection.detach(), *notes.values()):
                                os.close(other)
                            _become(descriptors[0])
                            return Job([str(one) for one in request["start"]], server, note, ending)
                        ended.pop(pid, None)
                        notes[pid], answer = note, {"pid": pid}
            for one in descriptors:
                os.close(one)
            connection.send(json.dumps({**answer, "number": request["number"]}).encode())


def _forked() -> tuple[int, int] | str:
    """Fork; return the pid (0 in the new process) and the descriptor for its note, or why the system refuses."""
    note = None
    try:
        note = os.memfd_create("imports")
        return fork(), note
    except OSError as error:
        if note is not None:
            os.close(note)
        return f"cannot fork: {error}"


def _code(pid: int) -> int | None:
    """Reap a process if it has ended, and return its exit code."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _noted(note: int) -> list[str]:
    """Return the modules that a process has noted; none if it was killed before."""
    with os.fdopen(note, "rb") as file:
        file.seek(0)
        try:
            return [name for name in json.load(file) if name not in sys.modules]
        except ValueError:
            return []


def _become(output: int) -> None:
    """Make a forked process like a fresh one: its output, and random states that are not to be those of others."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    numpy = sys.modules.get("numpy")  # `random` does the same itself
    if numpy is not None:
        numpy.random.seed()


def why_not_forkable() -> str | None:
    """Return why a fork of this process would not be like a fresh process, or None.

    Libraries that know of forks, such as OpenBLAS, end their threads when one happens; therefore one happens first.
    """
    gc.collect()
    gc.freeze()  # pages of these objects stay shared
    try:
        pid = fork()
    except OSError as error:
        return f"cannot fork: {error}"
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is initialized"
    return None if threads() == 1 else f"{threads()} threads run"
