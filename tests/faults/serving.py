"""A reward service in a process of its own, and plain sockets to talk to it: no client of ours between."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Answer", "Served", "exchange", "post", "resident", "served"]

REWARD = {"use": "geneval", "options": {"detector": "shapes"}}
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Served:
    """A running service: its address, its process, and what it has said."""

    process: subprocess.Popen[str]
    port: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return "127.0.0.1", self.port

    def said(self) -> str:
        """Everything so far."""
        return "".join(self.lines)


@dataclass(frozen=True)
class Answer:
    """What came back: the status (0 if nothing that looks like HTTP came), head and body."""

    status: int
    head: bytes
    body: bytes


@contextmanager
def served(**settings: Any) -> Iterator[Served]:
    """`dgpo serve` with GenEval and the miniature's detector, on a free port; ended, with all that it started, at the
    end."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "serve.yaml"
        file.write_text(yaml.safe_dump({"reward": REWARD, "port": 0, "threads": 1, **settings}))
        process = subprocess.Popen(
            [sys.executable, "-m", "dgpo_cli", "serve", str(file)], stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
        service = Served(process)
        assert process.stderr is not None
        reader = threading.Thread(target=lambda: service.lines.extend(process.stderr or ()), daemon=True)
        try:
            for line in process.stderr:
                service.lines.append(line)
                if line.startswith("ready:"):
                    service.port = int(line.rsplit(":", 1)[1])
                    break
            else:
                raise RuntimeError(f"the service did not start:\n{service.said()}")
            reader.start()
            yield service
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if reader.ident is not None:
                reader.join()
            process.stderr.close()


def exchange(address: tuple[str, int], raw: bytes, *, seconds: float = 20.0, finish: bool = False) -> Answer:
    """Send bytes and read until the answer is whole or the connection is closed. finish: say that no more will come."""
    with socket.create_connection(address, timeout=seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(raw)
            if finish:
                connection.shutdown(socket.SHUT_WR)
        return _read(connection)


def _read(connection: socket.socket) -> Answer:
    data = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while not _whole(data):
            piece = connection.recv(1 << 20)
            if not piece:
                break
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    found, length = STATUS.match(head), LENGTH.search(head)
    # What follows the body answers what the service took for another request.
    return Answer(int(found[1]) if found else 0, head, body[: int(length[1])] if length else body)


def _whole(data: bytes) -> bool:
    head, separator, body = data.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    return bool(separator) and length is not None and len(body) >= int(length[1])


def post(path: str, kind: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def resident(pid: int) -> int:
    """Bytes of memory in which a process and all that it has started reside (Linux); shared pages count in each."""
    total = 0
    for process in [pid, *_below(pid)]:
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{process}/statm").read_text().split()
            total += int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def _below(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_below(child)]
    return found
