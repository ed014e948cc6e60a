"""Requests by hand to a service: for tests of its front."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch

import dgpo_remote.server.connections as connections
from dgpo_core.types import Prompt
from dgpo_remote.messages.scores import score_request
from dgpo_schemas.service import SAFETENSORS, ErrorAnswer

Serve = Callable[..., Any]


ONE = score_request(torch.zeros(1, 3, 8, 8), [Prompt("x")])


SCORE = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: {SAFETENSORS}\r\n"


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it does not come to be")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LINGER", 0.2)


@pytest.fixture
def gate(parts: ModuleType) -> Iterator[threading.Event]:
    """What the prompt `wait` waits for."""
    parts.GATE.clear()
    parts.BATCHES.clear()
    yield parts.GATE
    parts.GATE.set()


@pytest.fixture(scope="module")
def server(serve_all_along: Serve) -> Any:
    return serve_all_along("moody", origins=["https://good.example"], limits={"max_body_mib": 4})


@contextmanager
def connected(server: Any, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=20) as made:
        made.sendall(sent)
        yield made


def all_of(connection: socket.socket) -> bytes:
    """What comes until the other side ends."""
    data = b""
    try:
        while piece := connection.recv(2**16):
            data += piece
    except ConnectionResetError:
        pass
    return data


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> tuple[int, str, str]:
    """Status, kind and message of the last answer, which must be an error in JSON."""
    head, _, body = answer[answer.rindex(b"HTTP/1.1 ") :].partition(b"\r\n\r\n")
    assert b"application/json" in head.lower()
    error = ErrorAnswer.model_validate_json(body).error
    assert error.message.isprintable()
    return status_of(head), error.kind, error.message


def score(server: Any, body: bytes = ONE, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/score", content=body, headers={"Content-Type": SAFETENSORS} | headers, timeout=20
    )


def waits(text: str = "wait") -> bytes:
    return score_request(torch.zeros(1, 3, 8, 8), [Prompt(text)])
