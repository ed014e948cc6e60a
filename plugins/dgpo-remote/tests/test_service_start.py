"""What keeps a run from starting with a reward behind servers."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import dgpo_remote.service.service as service_module
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt, Scores
from dgpo_remote.messages.scores import score_answer
from dgpo_remote.service.service import ServiceReward
from dgpo_schemas.sections.rewards import RewardBlock
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


# -- what keeps a run from starting ---------------------------------------------------------------------------------
def refused(make: Make, use: str = "conv", **block: Any) -> str:
    with pytest.raises(UserError) as caught:
        make(use, **block)
    return str(caught.value)


def test_servers_that_are_not_there(make: Make, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture) -> None:
    urls = [f"http://127.0.0.1:{free_port()}", "http://name:password@127.0.0.1:1"]
    message = refused(make, service=service(*urls))
    first, *rest = message.splitlines()
    assert first == "rewards.0.service.urls: no server answers; start one with `dgpo serve`:"
    assert rest[0].startswith(f"  {urls[0]}: ConnectError")
    assert rest[1].startswith("  http://127.0.0.1:1: ConnectError")
    assert "password" not in message + caplog.text
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]  # told once, at the first failure
    assert record.getMessage().startswith(f"rewards.0.service: waiting for {urls[0]} (ConnectError: ")
    assert "refused" in record.getMessage()
    assert record.getMessage().endswith("; up to 0.3 s more; then the run is given up")


def test_errors_of_ours_are_not_blamed_on_the_server(make: Make, samples: Samples, serve: Serve) -> None:
    reward = make("conv", service=service(serve("conv"), retries=3))
    assert isinstance(reward, ServiceReward)
    calls: list[Any] = []

    def broken(server: Any) -> Any:
        calls.append(server)
        raise ValueError("a mistake in this program")

    with pytest.raises(ValueError, match="a mistake in this program"):
        reward._ask(broken, "")
    assert len(calls) == 1
    assert reward.score(*samples(2)).missing.tolist() == [False, False]


def test_a_server_that_is_loading_is_waited_for_longer(script: Callable[..., Scripted], make: Make) -> None:
    loading = as_json({"error": {"kind": "busy", "message": "the service is loading"}}, 503)
    server = script(reward=[loading, loading, loading, as_json(DESCRIPTION)])
    assert make("conv", service=service(server)).range == (0.0, 1.0)
    message = refused(make, service=service(script(reward=[loading]), timeout=0.3))
    assert message.endswith("the service is loading")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (HTML, "is no dgpo reward service: it answered with something that is no JSON object: '<html>"),
        ((404, *HTML[1:]), "is no dgpo reward service: it answers with status 404: '<html>"),
        (as_json({"detail": "Not Found"}, 404), "is no dgpo reward service: it answers with status 404: '{"),
        (as_json([1]), "is no dgpo reward service: it answered with something that is no JSON object"),
        (as_json({"protocol": PROTOCOL}), "is no dgpo reward service: its description is not one"),
        (as_json({"error": {"kind": "request", "message": "Not Found"}}, 404), "answers: Not Found"),
        (
            as_json(DESCRIPTION | {"protocol": 7, "dgpo": "7.0"}),
            "(dgpo 7.0) speaks version 7 of the protocol, this dgpo",
        ),
        (as_json({}), "(dgpo of unknown version) speaks version None"),
        (as_json(DESCRIPTION | {"use": "other"}), "serves other, but `use` of rewards.0 is conv"),
    ],
)
def test_servers_that_serve_something_else(
    script: Callable[..., Scripted], make: Make, answer: Answer, message: str
) -> None:
    server = script(reward=[answer])
    found = refused(make, service=service(server))
    assert found.startswith(f"rewards.0.service.urls: {server.url} ")
    assert message in found


def test_options_that_differ(script: Callable[..., Scripted], make: Make) -> None:
    server = script()
    assert make("conv", service=service(server), options={"scale": 1}).range == (0.0, 1.0)
    found = refused(make, service=service(server), options={"seed": 5})
    assert found.endswith("serves conv with options.seed: 0, but `options.seed` of rewards.0 is 5")
    found = refused(make, service=service(server), options={"sede": {"a": 1}})
    assert found.endswith("options.sede: 'nothing', but `options.sede` of rewards.0 is {'a': 1}")
    other = script(reward=[as_json(DESCRIPTION | {"options": {"seed": 1, "scale": 1.0}})])
    assert f"{other.url} serves conv with other options than the other servers" in refused(
        make, service=service(server, other)
    )


def test_tokens(serve: Serve, make: Make, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv", token="right")
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    found = refused(make, service=service(server, token_variable="REWARD_TOKEN"))
    assert found.startswith("rewards.0.service.token_variable: the environment variable REWARD_TOKEN is not set")
    monkeypatch.setenv("REWARD_TOKEN", "wrong")
    found = refused(make, service=service(server, token_variable="REWARD_TOKEN"))
    assert "the token in the environment variable REWARD_TOKEN is not the server's" in found
    assert "name the environment variable that holds its token" in refused(make, service=service(server))
    monkeypatch.setenv("REWARD_TOKEN", "right\n")
    reward = make("conv", service=service(server, token_variable="REWARD_TOKEN"))
    assert reward.score(*samples(1)).missing.tolist() == [False]


@pytest.mark.parametrize("url", ["gpu-7:8500", "ftp://x", "http://", ""])
def test_addresses_that_the_schema_refuses(url: str) -> None:
    with pytest.raises(ValidationError, match=r"service.urls.0"):
        RewardBlock.model_validate({"use": "conv", "service": {"urls": [url]}})


def test_addresses_that_only_the_client_refuses(make: Make) -> None:
    found = refused(make, service={"urls": ["http://name:word@\u2603.example"]})
    assert found == ("rewards.0.service.urls: 'http://\u2603.example' is no address; write it like http://gpu-7:8500")
