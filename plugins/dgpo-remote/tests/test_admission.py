"""Requests to a service: limits, access control and error responses."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import json
import socket
import struct
import threading
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch

import dgpo_remote.server.app as app
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_remote.messages.blobs import Blob
from dgpo_remote.messages.scores import read_score_answer, score_request
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.budget import Budget
from dgpo_remote.server.intake import read_prompts
from dgpo_remote.tokens import read_token
from dgpo_schemas.serve import ServeConfig
from dgpo_schemas.service import SAFETENSORS, ServiceLimits
from tests.fronts import (
    SCORE,
    Serve,
    _soon,
    all_of,
    connected,
    error_of,
    gate,
    score,
    server,
    status_of,
    wait_for,
    waits,
)


# -- memory ---------------------------------------------------------------------------------------------------------
def test_a_budget() -> None:
    budget = Budget(100)
    one, two = budget.share(), budget.share()
    one.reserve(60)
    with pytest.raises(Refusal, match="not enough memory") as busy:
        two.reserve(41)
    assert (busy.value.status, busy.value.kind, busy.value.headers) == (503, "busy", {"Retry-After": "1"})
    with pytest.raises(Refusal, match="memory_mib") as never:
        one.reserve(41)
    assert (never.value.status, never.value.kind) == (413, "size")
    two.reserve(40)
    one.hold()  # its job
    one.release()
    assert budget.used == 100
    one.release()
    two.release()
    assert budget.used == 0
    with pytest.raises(Refusal):
        one.reserve(1)
    assert budget.used == 0


def test_memory_of_requests_in_progress_is_limited(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    """An announced body counts; so does a job whose client has disconnected, until the reward has finished it."""
    server = serve("moody", memory_mib=16, limits={"max_body_mib": 4}, timeout=5)
    budget = server.service.budget
    with connected(server, f"{SCORE}Content-Length: {3 * 2**20}\r\n\r\nx".encode()):
        wait_for(lambda: budget.used == 6 * 2**20)
        large = score_request(torch.zeros(1, 3, 512, 500), [Prompt("x")])
        answer = score(server, large)
        assert (answer.status_code, answer.json()["error"]["kind"], answer.headers["retry-after"]) == (503, "busy", "1")
        assert score(server).status_code == 200
        assert "dgpo_memory_bytes 6.291456e+06" in httpx.get(f"{server.url}/metrics").text
    wait_for(lambda: budget.used == 0)
    assert score(server, large).status_code == 200
    with connected(server, f"{SCORE}Content-Length: {len(waits())}\r\n\r\n".encode() + waits()):
        wait_for(lambda: len(parts.BATCHES) == 3)
    wait_for(lambda: server.service.inside == 0)
    assert budget.used > 0
    gate.set()
    wait_for(lambda: budget.used == 0)
    bytes_ = score_request(torch.zeros(1, 3, 1000, 700, dtype=torch.uint8), [Prompt("x")])  # 2 MiB, 16 as floats twice
    answer = score(server, bytes_)
    assert (answer.status_code, "memory_mib" in answer.json()["error"]["message"]) == (413, True)


def test_a_body_without_content_length_is_counted_as_it_arrives(serve: Serve) -> None:
    server = serve("conv", memory_mib=4, limits={"max_body_mib": 1})
    with connected(server, SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n") as connection:
        wait_for(lambda: server.service.budget.used == 2 * 2**20)
        connection.sendall(b"100001\r\n" + bytes(2**20 + 1) + b"\r\n")
        assert error_of(all_of(connection))[0] == 413
    wait_for(lambda: server.service.budget.used == 0)


@pytest.mark.parametrize("where", ["_score_response", "read_body"])
def test_the_service_runs_out_of_memory(server: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    async def starved(*_: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 1 bytes")

    monkeypatch.setattr(*((server.service, where) if where == "_score_response" else (app, where)), starved)
    answer = score(server)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (507, "memory")
    assert answer.json()["error"]["message"].startswith("the service ran out of memory while reading the request")


def test_the_reward_runs_out_of_memory(server: Any, parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: Any) -> None:
        raise torch.OutOfMemoryError("16 GiB are not enough")

    monkeypatch.setattr(parts.Moody, "score", starve)
    answer = score(server, score_request(torch.zeros(3, 3, 8, 8), [Prompt("x")] * 3))
    assert (answer.status_code, answer.json()["error"]["kind"]) == (507, "memory")
    assert answer.json()["error"]["message"].startswith("the service ran out of memory with a request of 3 samples")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mib": 1000}, "set it to at least 1024, or lower limits.max_body_mib to 250"),
        ({"memory_mib": 3}, "memory_mib"),
        ({"connections": {"max": 32}}, "must be greater than `queue`"),
        ({"connections": {"body_seconds": 1e10}}, "body_seconds"),
        ({"origins": ["example.org"]}, "is not an origin"),
        ({"origins": ["https://example.org/page"]}, "is not an origin"),
        ({"origins": ["*"]}, "is not an origin"),
        ({"limits": {"max_prompts": 999}}, "max_prompts"),
        ({"limits": {"max_json_kib": 100}}, "max_json_kib"),
    ],
)
def test_impossible_limits_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + message.replace(".", r"\.")):
        ServeConfig.model_validate({"reward": "conv"} | changes)


def test_default_limits_depend_on_the_others() -> None:
    config = ServeConfig.model_validate({"reward": "conv"})
    assert (config.memory, config.most_connections) == (4 * 2**30, 256)
    config = ServeConfig.model_validate({"reward": "conv", "queue": 500, "limits": {"max_body_mib": 1024}})
    assert (config.memory, config.most_connections) == (10 * 2**30, 1000)


# -- prompts --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"prompts": [{"text": "x"}] * 10_001}, 413, "10,001 prompts; at most 10,000 are allowed (limits.max_prompts)"),
        ({"prompts": [{"text": "x" * 2**20}]}, 413, "larger than 1024 KiB (limits.max_json_kib)"),
        ({"prompts": [{"text": "x"} | {str(i): 0 for i in range(50_000)}]}, 422, "prompts.0.0: unknown key"),
        ({"prompts": [{"text": "x"}], **{str(i): 0 for i in range(50_000)}}, 422, "unknown key"),
        ({"prompts": {"text": "x"}}, 422, "prompts: must be a list"),
        ({}, 422, "prompts: is missing"),
        ([], 422, "must be a JSON object"),
        ({"prompts": [{"text": "x"}, {"text": 5}]}, 422, "prompts.1.text"),
        ({"prompts": [{"text": "x"}, 5]}, 422, "prompts.1"),
        (
            {"prompts": [{"text": "a\ud800"}]},
            422,
            "prompts.0.text contains half of a character (the lone surrogate U+D800, character 2)",
        ),
        (b'{"prompts": ' + b"[" * 100_000, 400, "not JSON"),
        (b'{"prompts": [{"text": "", "metadata": {"a": %s}}]}' % (b"[" * 70 + b"]" * 70), 422, "nested deeper than 64"),
        (b'{"prompts": %s}' % (b"1" * 5000), 400, "not JSON"),
        (b"\xff\xfe\x00", 400, "not JSON"),
        (b"", 400, "not JSON"),
    ],
    ids=range(15),
)
def test_checks_that_are_refused(server: Any, body: Any, status: int, message: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/check", content=content, headers=headers, timeout=20)
    found = error_of(f"HTTP/1.1 {answer.status_code} \r\ncontent-type: application/json\r\n\r\n{answer.text}".encode())
    assert (found[0], message in found[2]) == (status, True), found


def test_json_with_too_many_lists_is_not_parsed(server: Any) -> None:
    """Parsing it would hold the GIL and block other clients."""
    many = b"[" + b",".join([b"[]"] * 170_000) + b"]"
    check = b'{"prompts":[{"text":"x","metadata":{"a":' + many + b"}}]}"
    header = b'{"__metadata__":{"dgpo":"' + many + b'"}}'
    tensors = len(header).to_bytes(8, "little") + header
    for path, kind, body in (("check", "application/json", check), ("score", SAFETENSORS, tensors)):
        answer = httpx.post(f"{server.url}/v1/{path}", content=body, headers={"Content-Type": kind}, timeout=20)
        assert answer.status_code == 413
        assert "lists and objects; at most 160,000 are allowed" in answer.text


def test_prompts_are_read_unchanged() -> None:
    given = [{"text": f"é {i}", "metadata": {"n": [i, {"deep": None}]}} for i in range(10_000)]
    found = read_prompts(json.dumps({"prompts": given}).encode(), ServiceLimits())
    assert [{"text": prompt.text, "metadata": prompt.metadata} for prompt in found] == given


def test_checks_time_out(serve: Serve, parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(parts.Conv, "check_prompts", lambda *_: over.wait(20))
    server = serve("conv", timeout=0.2)
    answer = httpx.post(f"{server.url}/v1/check", json={"prompts": [{"text": "x"}]}, timeout=20)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "timeout")
    assert httpx.get(f"{server.url}/health").status_code == 200
    over.set()


def test_a_header_that_is_too_large_is_refused(server: Any) -> None:
    header = json.dumps({"__metadata__": {"dgpo": "x" * 2**21}}).encode()
    answer = score(server, struct.pack("<Q", len(header)) + header)
    assert (answer.status_code, "limits.max_json_kib" in answer.json()["error"]["message"]) == (413, True)


# -- who may ask ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_checks_are_json(server: Any, kind: str) -> None:
    answer = httpx.post(f"{server.url}/v1/check", content=b'{"prompts": []}', headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (415, "type")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://good.example.evil.example"},
        {"Origin": "http://good.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8500"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Host": ""},
    ],
    ids=str,
)
def test_requests_of_web_pages_are_refused(server: Any, headers: dict[str, str]) -> None:
    for method, path in [("GET", "/v1/reward"), ("GET", "/v1/examples"), ("POST", "/v1/score"), ("OPTIONS", "/v1/x")]:
        answer = httpx.request(method, f"{server.url}{path}", headers=headers)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (403, "origin")
    assert httpx.get(f"{server.url}/health", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8500"])
def test_names_of_this_machine(server: Any, host: str) -> None:
    assert httpx.get(f"{server.url}/v1/reward", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://localhost/v1/reward HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET http://evil.example/v1/reward HTTP/1.1\r\nHost: localhost\r\n\r\n", 403),
        (b"GET HTTP://127.0.0.1:1?x=/ HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /v1/reward HTTP/1.0\r\n\r\n", 200),
    ],
)
def test_other_forms_of_the_target(server: Any, head: bytes, status: int) -> None:
    with connected(server, head) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert status_of(all_of(connection)) == status


def test_requests_of_listed_origins_are_allowed(server: Any) -> None:
    headers = {"Origin": "https://good.example", "Sec-Fetch-Site": "cross-site"}
    answer = httpx.get(f"{server.url}/v1/reward", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://good.example")
    answer = httpx.options(f"{server.url}/v1/score", headers=headers | {"Access-Control-Request-Method": "POST"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (204, "https://good.example")
    assert "content-type" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-origin" not in httpx.get(f"{server.url}/v1/reward").headers


def test_any_host_is_accepted_with_the_token(serve: Serve) -> None:
    server = serve("conv", token="secret")
    headers = {"Host": "rewards.example", "Authorization": "Bearer secret"}
    assert httpx.get(f"{server.url}/v1/reward", headers=headers).status_code == 200
    assert httpx.get(f"{server.url}/v1/reward", headers=headers | {"Origin": "https://x.example"}).status_code == 403


@pytest.mark.parametrize("token", ["two words", "schlüssel", "a\nb", "a\x1b"])
def test_tokens_with_invalid_characters_are_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(UserError, match="not allowed in an HTTP header") as caught:
        read_token("REWARD_TOKEN")
    assert token not in str(caught.value)


# -- errors ---------------------------------------------------------------------------------------------------------
def test_internal_errors_are_reported_in_json(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def mistaken(*_: Any) -> Any:
        raise OverflowError("\x1b[2Jx" * 5000)

    monkeypatch.setattr(server.service, "_score_response", mistaken)
    answer = score(server)
    error = answer.json()["error"]
    assert (answer.status_code, error["kind"]) == (500, "internal")
    assert error["message"].startswith(r"internal error of the service: OverflowError: \x1b[2Jx")
    assert len(error["message"]) <= 2000
    wait_for(lambda: "/v1/score: OverflowError" in caplog.text)
    assert "\x1b" not in caplog.text


class Mute(BaseException):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "raised", [Mute(), KeyboardInterrupt(), GeneratorExit("x"), RuntimeError("\x1b]0;x\x07" * 999)]
)
def test_the_thread_survives_any_exception_of_the_reward(
    server: Any, parts: ModuleType, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    def raises(*_: Any) -> None:
        raise raised

    with monkeypatch.context() as patched:
        for name in ("score", "check_prompts"):
            patched.setattr(parts.Moody, name, raises)
        check = httpx.post(f"{server.url}/v1/check", json={"prompts": [{"text": "x"}]}, timeout=20)
        for answer in (score(server), check):
            error = answer.json()["error"]
            assert (answer.status_code, error["kind"]) == (500, "reward")
            assert error["message"].startswith(type(raised).__name__)
            assert error["message"].isprintable()
    assert score(server).status_code == 200


# -- media ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nonfinite_media_have_no_score(server: Any, value: float, dtype: torch.dtype) -> None:
    media = torch.rand(3, 3, 8, 8).to(dtype)
    prompts = [Prompt("x")] * 3
    alone = read_score_answer(Blob(score(server, score_request(media, prompts)).content))
    media[1, 2, 7, 7] = value
    found = read_score_answer(Blob(score(server, score_request(media, prompts)).content))
    assert found.missing.tolist() == [False, True, False]
    assert found.values[[0, 2]].tolist() == alone.values[[0, 2]].tolist()
    assert found.diagnostics[1]["reason"] == "the media are not finite"
    assert "reason" not in found.diagnostics[0]
    answer = score(server, score_request(media, prompts), Accept="application/json").json()
    assert answer["values"][1] is None
