"""The service's side of one reader process: start, non-blocking messages and termination."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from dgpo_remote.server.frames import HEAD, MAGIC, MOST_HEAD, packed, unpacked
from dgpo_schemas.text import clean

__all__ = ["ReaderProcess"]

MODULE = "dgpo_remote.server.reader_main"
KEPT = ("PATH", "HOME", "TMPDIR", "TZ", "LANG", "VIRTUAL_ENV", "CONDA_PREFIX")
KEPT_PREFIXES = ("PYTHON", "LC_", "LD_", "DYLD_", "COVERAGE_")
"""Environment variables that a reader inherits, for its interpreter. A process that reads untrusted input must not get
tokens and passwords."""
SMALL = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
LAST_WORDS = 4096
"""Bytes of its stderr that are read after it has died."""


class ReaderProcess:
    """A reader process. Methods raise EOFError if it is gone or sends an invalid message."""

    def __init__(self, memory: int) -> None:
        """Start the interpreter with a memory limit in bytes. Raises OSError if it cannot be started."""
        local, remote = socket.socketpair()
        self._errors, errors = os.pipe()
        os.set_blocking(self._errors, False)
        os.set_blocking(errors, False)  # the pipe is not read continuously: what does not fit is dropped
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", MODULE, *map(str, (remote.fileno(), os.getpid(), memory))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_environment(),
                pass_fds=[remote.fileno()],
                process_group=0,
            )
        except BaseException:
            local.close()
            os.close(self._errors)
            raise
        finally:
            remote.close()
            os.close(errors)
        local.setblocking(False)
        self._socket = local
        self._greeted = False
        self.killed = False

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether the process has exited. Reaps it."""
        return self._process.poll() is not None

    async def greet(self) -> None:
        """Wait until the process is ready."""
        if not self._greeted:
            head, _ = await self.receive(0)
            if head != {"say": "hello"}:
                raise EOFError("not a reader")
            self._greeted = True

    async def send(self, head: dict[str, Any], rest: bytes = b"") -> None:
        """Send a message."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._socket, packed(head, len(rest)))
            if rest:
                await loop.sock_sendall(self._socket, rest)
        except OSError as error:
            raise EOFError(str(error)) from error

    async def receive(self, most: int) -> tuple[dict[str, Any], bytearray]:
        """Wait for a message with a payload of at most `most` bytes."""
        magic, short, long = HEAD.unpack(await self._read(HEAD.size))
        if magic != MAGIC or short > MOST_HEAD or long > most:
            raise EOFError("not a message")
        return unpacked(await self._read(short)), await self._read(long)

    async def _read(self, length: int) -> bytearray:
        loop, data = asyncio.get_running_loop(), bytearray(length)
        with memoryview(data) as view:
            got = 0
            while got < length:
                try:
                    count = await loop.sock_recv_into(self._socket, view[got:])
                except OSError as error:
                    raise EOFError(str(error)) from error
                if count == 0:
                    raise EOFError("the reader has ended")
                got += count
        return data

    async def fate(self) -> int | None:
        """Return the exit status, or the negative signal number. Returns None if the process is still running."""
        for _ in range(20):  # its socket closes shortly before it can be reaped
            if (code := self._process.poll()) is not None:
                return code
            await asyncio.sleep(0.01)
        return None

    def last_words(self) -> str:
        """Return the last line of its stderr, safe to print."""
        if self.killed:  # the pipe's descriptor may have been reused
            return ""
        with contextlib.suppress(OSError):
            lines = os.read(self._errors, 16 * LAST_WORDS)[-LAST_WORDS:].decode("utf-8", "replace").split("\n")
            return clean(next((line.strip() for line in reversed(lines) if line.strip()), ""), 300)
        return ""

    def kill(self) -> None:
        """Kill the process and its children. `ended` tells when it is gone."""
        if self.killed:
            return
        self.killed = True
        self._socket.close()
        os.close(self._errors)
        if self._process.poll() is None:  # otherwise its process ID may have been reused
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    return kept | SMALL
