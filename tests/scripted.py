"""A service whose answers are written down, and what calls it: for tests of rewards behind services."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo_remote.service.service as service_module
from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt, Scores
from dgpo_remote.messages.scores import score_answer
from dgpo_schemas.service import PROTOCOL, SAFETENSORS

Serve = Callable[..., Any]


Make = Callable[..., RewardModel]


Samples = Callable[..., tuple[Tensor, list[Prompt]]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(service_module, "START", 0.3)


DESCRIPTION = {
    "protocol": PROTOCOL, "dgpo": "0.1.0", "use": "conv", "options": {"seed": 0, "scale": 1.0}, "range": [0, 1],
    "media": ["image"], "group_by": None, "concurrency": 1, "something new": 1,
}  # fmt: skip


Answer = tuple[int, dict[str, str], bytes]


def as_json(data: Any, status: int = 200, **headers: str) -> Answer:
    return status, {"Content-Type": "application/json"} | headers, json.dumps(data).encode()


def good(count: int = 2) -> Answer:
    blob = score_answer(Scores(torch.full((count,), 0.5), torch.zeros(count, dtype=torch.bool)))
    return 200, {"Content-Type": SAFETENSORS}, blob


HTML: Answer = (200, {"Content-Type": "text/html"}, b"<html><h1>Welcome to nginx!</h1></html>")


class Scripted:
    """A server that answers as a script says: path to answers, of which the last is given for ever."""

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self.script = {"/v1/reward": [as_json(DESCRIPTION)], "/ready": [as_json({})], "/v1/score": [good()]} | script
        self.asked: list[str] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 2**16  # else headers and body travel apart, and the second waits for the first

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                scripted.asked.append(self.path)
                answers = scripted.script[self.path]
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
                if answer is None:  # the connection breaks
                    self.close_connection = True
                    return
                if callable(answer):
                    answer = answer(self)
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # of callers that have lost their patience
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def script() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def start(**paths: Any) -> Scripted:
        names = {"reward": "/v1/reward", "score": "/v1/score", "ready": "/ready", "check": "/v1/check"}
        made.append(Scripted({names[name]: answers for name, answers in paths.items()}))
        return made[-1]

    yield start
    for server in made:
        server.close()


def service(*servers: Any, **section: Any) -> dict[str, Any]:
    return {"urls": [server if isinstance(server, str) else server.url for server in servers]} | section
