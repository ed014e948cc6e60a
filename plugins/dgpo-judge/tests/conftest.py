"""Servers that behave and that do not, and rewards that ask them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
import torch

import dgpo_judge.client as client_module
import dgpo_judge.endpoints as endpoints_module
from dgpo_judge.demo_server import Server, answer_to, send
from dgpo_judge.group_rewards import ListReward, PairsReward
from dgpo_judge.options import JudgeOptions, ListOptions, PairsOptions
from dgpo_judge.reward import JudgeReward
from dgpo_kit.fixtures import toy_run

__all__ = ["toy_run"]

Respond = Callable[[BaseHTTPRequestHandler, Mapping[str, Any]], None]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(endpoints_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(client_module, "START", 0.3)
    monkeypatch.setattr(client_module, "LOOK", 0.05)


class Playing(Server):
    """A server that answers as `respond` says, counts, and remembers what it was asked."""

    def __init__(self, play: Respond | None = None, port: int = 0) -> None:
        self.play = play
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        super().__init__(port)

    def respond(self, handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
        with self.lock:
            self.requests.append(dict(request))
            self.headers.append(dict(handler.headers))
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.play is None:
                super().respond(handler, request)
            else:
                self.play(handler, request)
        finally:
            with self.lock:
                self.in_flight -= 1


def good(handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
    """Answer as the demo server does."""
    send(handler, 200, json.dumps(answer_to(request)).encode())


def first(*plays: Respond, then: Respond = good) -> Respond:
    """Play each of `plays` once, in order, then the last for ever."""
    left, lock = list(plays), threading.Lock()

    def play(handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
        with lock:
            one = left.pop(0) if left else then
        one(handler, request)

    return play


def status(code: int, body: bytes = b'{"error": {"message": "no"}}', **headers: str) -> Respond:
    """Answer with a status."""
    return lambda handler, request: send(handler, code, body, **{k.replace("_", "-"): v for k, v in headers.items()})


def hang(seconds: float) -> Respond:
    """Say nothing for a while, and then leave."""

    def play(handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return play


def cut(handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
    """Send half of what was announced."""
    body = json.dumps(answer_to(request)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[: len(body) // 2])
    handler.close_connection = True


@pytest.fixture
def play() -> Iterator[Callable[..., Playing]]:
    """Start servers, which end with the test."""
    with contextlib.ExitStack() as closing:

        def start(respond: Respond | None = None, port: int = 0) -> Playing:
            server = Playing(respond, port)
            closing.callback(server.close)
            return server

        yield start


@pytest.fixture
def judge() -> Iterator[Callable[..., Any]]:
    """Build rewards by the name of their kind ("judge", "pairs", "list"); they are closed with the test."""
    kinds = {
        "judge": (JudgeReward, JudgeOptions),
        "pairs": (PairsReward, PairsOptions),
        "list": (ListReward, ListOptions),
    }
    with contextlib.ExitStack() as closing:

        def build(server: Server | list[Server], kind: str = "judge", **options: Any) -> Any:
            servers = server if isinstance(server, list) else [server]
            cls, model = kinds[kind]
            reward = cls(model(urls=[s.url for s in servers], **options), device=torch.device("cpu"))
            closing.callback(reward.close)
            return reward

        yield build


def pictures(count: int, seed: int = 0, size: tuple[int, ...] = (3, 40, 48)) -> torch.Tensor:
    """Random pictures [count, ...] of different brightness."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *size, generator=generator) * torch.linspace(0.1, 1, count).view(-1, *[1] * len(size))


def red(media: torch.Tensor) -> torch.Tensor:
    """Mean of the red channel of the 8-bit pictures, float64 [B]: what the demo server answers by."""
    return (media.double() * 255).round().div(255)[:, 0].mean((1, 2))
