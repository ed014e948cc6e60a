"""`dgpo serve` with misbehaving clients."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import signal
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import httpx
import pytest

import dgpo_remote.server.connections as connections
import dgpo_remote.server.descriptors as descriptors
import dgpo_remote.server.pool as pool_module
import dgpo_remote.server.server as serving
from dgpo_schemas.service import SAFETENSORS
from tests.fronts import (
    ONE,
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

HOST = b"Host: localhost\r\n"


# -- HTTP -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("raw", "status", "message"),
    [
        (b"hello\r\n\r\n", 400, "not an HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01", 400, "TLS"),
        (b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", 400, "not an HTTP request"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "Host"),
        (b"GET /health HTTP/3.0\r\n" + HOST + b"\r\n", 505, "HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1"),
        (b"GET http://a@localhost/health HTTP/1.1\r\n" + HOST + b"\r\n", 400, "must be a path"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "must be a path"),
        (b"GET /he\x00alth HTTP/1.1\r\n" + HOST + b"\r\n", 400, "not an HTTP request"),
        (b"GET /health HTTP/1.1\r\nX: a\x00b\r\n" + HOST + b"\r\n", 400, "not an HTTP request"),
        (b"GET /health HTTP/1.1\r\nX : a\r\n" + HOST + b"\r\n", 400, "not an HTTP request"),
        (b"GET /health HTTP/1.1\r\n folded\r\n" + HOST + b"\r\n", 400, "not an HTTP request"),
        (b"GET /%1b%5d0;x%07%0a HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", 404, r"/\x1b]0;x\x07\n"),
        (b"GET /x HTTP/1.1\r\nConnection: close\r\nHost: [\r\n\r\n", 404, "GET /x: Not Found"),
        (SCORE.encode() + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both"),
        (SCORE.encode() + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "Content-Length"),
        (SCORE.encode() + b"Content-Length: -1\r\n\r\n", 400, "Content-Length"),
        (SCORE.encode() + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "Content-Length"),
        (SCORE.encode() + b"Content-Length: 99999999999999999\r\n\r\n", 413, "max_body_mib"),
        (SCORE.encode() + b"Transfer-Encoding: gzip\r\n\r\n", 501, "Transfer-Encoding"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "not an HTTP request"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n", 400, "not an HTTP request"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 3000, 400, "chunks hold fewer"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 3000, 431, "not an HTTP request"),
        (SCORE.encode() + b"Expect: the-unexpected\r\n\r\n", 417, "100-continue"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n", 431, "head_kib"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 200 + b"\r\n", 431, "lines"),
        (b"X: y\r\n" * 200, 431, "lines"),
    ],
)  # fmt: skip
def test_malformed_http_gets_a_json_response(server: Any, raw: bytes, status: int, message: str) -> None:
    with connected(server, raw) as connection:
        found = error_of(all_of(connection))
    assert (found[0], message in found[2]) == (status, True), found


def test_pipelined_requests_are_answered_in_order(server: Any) -> None:
    health = b"GET /health HTTP/1.1\r\n" + HOST
    last = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    asked = f"{SCORE}Content-Length: {len(ONE)}\r\n\r\n".encode() + ONE
    with connected(server, asked + (health + b"\r\n") * 3 + asked + b"\r\n" + last) as connection:
        answers = all_of(connection).split(b"HTTP/1.1 ")[1:]
    assert [status_of(b"HTTP/1.1 " + one) for one in answers] == [200, 200, 200, 200, 200, 404]
    assert [b'"alive"' in one for one in answers] == [False, True, True, True, False, False]
    with connected(server, health + b"\r\n" + b"nonsense\r\n\r\n") as connection:
        answer = all_of(connection)
    assert b'{"status":"alive"}' in answer
    assert error_of(answer)[:2] == (400, "request")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_closes_its_write_side_gets_a_response(server: Any, version: str) -> None:
    """As `nc -N` does."""
    asked = f"{SCORE}Content-Length: {len(ONE)}\r\n\r\n".replace("1.1", version).encode() + ONE
    for sent, count in ((asked, 1), (b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n" + asked + b"\r\n", 2)):
        with connected(server, sent) as connection:
            connection.shutdown(socket.SHUT_WR)
            answer = all_of(connection)
        assert answer.count(b"HTTP/1.1 200") == answer.count(b"HTTP/1.1 ") == count
    for sent, message in ((asked[:20], "it ends within its head"), (asked[:-1], "it ends within its body"), (b"", "")):
        with connected(server, sent) as connection:
            connection.shutdown(socket.SHUT_WR)
            answer = all_of(connection)
        assert error_of(answer)[2] == f"not an HTTP request: {message}" if message else answer == b""


def test_a_client_that_closes_its_write_side_is_probed(
    serve: Serve, gate: threading.Event, parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is an interim response, which clients ignore."""
    monkeypatch.setattr(connections, "PROBE", 0.0)
    server, body = serve("moody"), waits()
    with connected(server, f"{SCORE}Content-Length: {len(body)}\r\n\r\n".encode() + body) as connection:
        connection.shutdown(socket.SHUT_WR)
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(interim)) == interim
        gate.set()
        assert all_of(connection).startswith(b"HTTP/1.1 200")


def test_connections_are_reused(server: Any) -> None:
    with connected(server) as connection:
        for before in (b"", b"\r\n", b"\r\n"):  # old clients end a body with an empty line
            connection.sendall(before + SCORE.encode() + f"Content-Length: {len(ONE)}\r\n\r\n".encode() + ONE)
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200")


def test_head_options_and_expect(server: Any) -> None:
    answer = httpx.head(f"{server.url}/health")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "19")
    assert httpx.head(f"{server.url}/nowhere").status_code == 404
    answer = httpx.options(f"{server.url}/v1/score")
    assert (answer.status_code, answer.headers["allow"], answer.content) == (204, "OPTIONS, POST", b"")
    with connected(server, b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 204")
    length = f"Content-Length: {len(ONE)}\r\nExpect: 100-continue\r\n\r\n"
    with connected(server, (SCORE + length).encode()) as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 100")
        connection.sendall(ONE)
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
    refused = SCORE.replace(SAFETENSORS, "text/plain") + length
    with connected(server, refused.encode()) as connection:
        assert error_of(all_of(connection))[0] == 415  # and nothing of a 100 before it


def test_no_redirects(server: Any) -> None:
    answer = httpx.get(f"{server.url}/health/", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (404, "request")


# -- connections ----------------------------------------------------------------------------------------------------
def test_request_heads_time_out(serve: Serve) -> None:
    server = serve("conv", connections={"head_seconds": 0.2})
    with connected(server, b"GET /health HT") as half, connected(server) as silent:
        assert error_of(all_of(half))[::2] == (
            408,
            "the request head was not received within 0.2 s (connections.head_seconds)",
        )
        assert all_of(silent) == b""
    with connected(server, b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        time.sleep(0.3)  # between two requests there is more time
        connection.sendall(b"GET /health")
        assert error_of(all_of(connection))[0] == 408
    wait_for(lambda: not server.service.pool.connections)


def test_idle_connections_are_closed(serve: Serve) -> None:
    server = serve("conv", connections={"keep_alive_seconds": 0.1})
    with connected(server, b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") as connection:
        assert b'{"status":"alive"}' in all_of(connection)


def test_a_flood_of_connections_leaves_room(serve: Serve, gate: threading.Event) -> None:
    """The longest waiting connection is closed; those with requests in progress are kept."""
    server = serve("moody", queue=7, connections={"max": 8})
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(score, server, waits()) for _ in range(3)]
        wait_for(lambda: server.service.inside == 3)
        flood = [socket.create_connection(("127.0.0.1", server.server._listening.getsockname()[1])) for _ in range(40)]
        for one in flood:
            one.sendall(b"GET /health HT")
        for _ in range(3):
            assert httpx.get(f"{server.url}/health", timeout=20).status_code == 200
        assert len(server.service.pool.connections) <= 8
        gate.set()
        assert [one.result().status_code for one in held] == [200] * 3
        for one in flood:
            one.close()
    assert 'dgpo_refused_total{reason="connections"}' in httpx.get(f"{server.url}/metrics").text


def test_closed_connections_are_not_accepted() -> None:
    with serving.bind("127.0.0.1", 0) as listening:
        listening.setblocking(False)
        for gone in (True, True, False, True):
            made = socket.create_connection(listening.getsockname(), timeout=20)
            if gone:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                made.close()
            else:
                there = made
        accepted, address = listening.accept()
        assert address == there.getsockname()
        with pytest.raises((BlockingIOError, ConnectionAbortedError)):  # the latter on macOS
            listening.accept()
        accepted.close()
        there.close()


def test_a_connection_beyond_the_limit_is_refused(
    serve: Serve, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("moody", queue=3)
    server.service.pool.most = 2
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(score, server, waits()) for _ in range(2)]
        wait_for(lambda: server.service.inside == 2)
        with connected(server) as connection:
            assert error_of(all_of(connection))[:2] == (503, "busy")
        gate.set()
        assert [one.result().status_code for one in held] == [200] * 2


def test_bodies_time_out(serve: Serve) -> None:
    server = serve("conv", connections={"body_seconds": 0.1}, limits={"max_body_mib": 4})
    for length in ("Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhal"):
        with connected(server, (SCORE + length).encode()) as connection:
            message = "the body was not received within 0.1 s (connections.body_seconds)"
            assert error_of(all_of(connection)) == (408, "timeout", message)
    wait_for(lambda: server.service.inside == 0 and server.service.budget.used == 0)


def test_a_client_that_does_not_read_its_response_is_disconnected(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("conv", connections={"answer_seconds": 0.2, "keep_alive_seconds": 60})
    monkeypatch.setattr(type(server.service.counters), "text", lambda self: b"x" * 2**24)
    with connected(server, b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"):
        wait_for(lambda: sum(one.unread_bytes() for one in list(server.service.pool.connections)) > 0)
        wait_for(lambda: not server.service.pool.connections)


def test_unread_responses_have_a_common_limit(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv")
    pool = server.service.pool
    monkeypatch.setattr(type(server.service.counters), "text", lambda self: b"x" * 2**24)
    request = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    with connected(server, request), connected(server, request):
        wait_for(lambda: sum(one.unread_bytes() > 0 for one in list(pool.connections)) == 2)
        monkeypatch.setattr(pool_module, "UNREAD", 2**24)
        wait_for(lambda: len(pool.connections) == 1)
        assert pool.connections.pop().unread_bytes() > 0


def test_a_body_in_tiny_chunks_is_read_in_turns(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole body arrives."""
    server = serve("conv")
    monkeypatch.setattr(pool_module, "TURN", 0.0001)
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(ONE[i : i + 5]), ONE[i : i + 5]) for i in range(0, len(ONE), 5))
    with connected(server, SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n") as one:
        assert one.recv(2**16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("soft", "hard", "fits", "raised"),
    [
        (10_000, 10_000, 256, None),
        (256, 4096, 256, 576),
        (256, descriptors.resource.RLIM_INFINITY, 256, 576),
        (256, 500, 180, 500),
        (100, 100, 25, None),
    ],
)
def test_connections_are_limited_by_file_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, fits: int, raised: int
) -> None:
    soft_limits: list[int] = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda which, limits: soft_limits.append(limits[0]))
    assert descriptors.connections_that_fit(256) == fits
    assert soft_limits == ([] if raised is None else [raised])
    assert ("connections.max is" in caplog.text) == (fits < 256)


# -- disconnects and shutdown ---------------------------------------------------------------------------------------
def test_requests_of_disconnected_clients_are_cancelled(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    server = serve("moody")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(score, server, waits())
        wait_for(lambda: parts.BATCHES == [1])
        body = waits("x")
        with connected(server, f"{SCORE}Content-Length: {len(body)}\r\n\r\n".encode() + body):
            wait_for(lambda: server.batcher.waiting() == 1)
        wait_for(lambda: server.batcher.waiting() == 0 and server.service.inside == 1)
        gate.set()
        assert held.result().status_code == 200
    wait_for(lambda: server.service.budget.used == 0)
    assert parts.BATCHES == [1]
    assert 'dgpo_requests_total{path="/v1/score",status="499"} 1' in httpx.get(f"{server.url}/metrics").text


def test_shutdown_does_not_wait_for_clients_or_the_reward(
    serve: Serve, gate: threading.Event, parts: ModuleType
) -> None:
    """Neither for heads, bodies, idle connections and unread responses, nor for a reward that hangs or does not
    close."""
    server = serve("moody", drain_seconds=0.1)
    never = threading.Event()
    server.batcher.reward.close = lambda: never.wait(20)
    idle = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    sent = [b"GET /hea", f"{SCORE}Content-Length: 99\r\n\r\nx".encode(), idle, b""]
    sent.append(f"{SCORE}Content-Length: {len(waits())}\r\n\r\n".encode() + waits())
    opened = [connected(server, one) for one in sent]
    sockets = [one.__enter__() for one in opened]
    wait_for(lambda: server.service.inside == 2)
    server.server.drain()
    server.thread.join(10)
    assert not server.thread.is_alive()
    never.set()
    for one in sockets:
        all_of(one)
        one.close()


def test_responses_are_delivered_at_shutdown(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    server = serve("moody")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(score, server, waits())
        wait_for(lambda: parts.BATCHES == [1])
        server.server.drain()
        with connected(server, b"GET /v1/reward HTTP/1.1\r\n" + HOST + b"\r\n") as late:
            assert error_of(late.recv(2**16)) == (503, "busy", "the service is draining")
        gate.set()
        assert held.result().status_code == 200


def test_health_does_not_wait_for_locks(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    """Not even for the lock of the job queue."""
    server = serve("moody")
    with server.batcher._change:
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(f"{server.url}{path}", timeout=10).status_code == 200


def test_a_process_that_does_not_exit_is_terminated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    statuses: list[int] = []
    monkeypatch.setattr(serving.os, "_exit", lambda status: statuses.append(status) or ended.set())  # type: ignore[func-returns-value]
    serving._end_process(0.0)
    assert ended.wait(10)
    assert statuses == [0]
    assert "did not finish within drain_seconds" in caplog.text


def test_a_signal_starts_the_shutdown_timer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv", drain_seconds=3)
    started: list[float] = []
    monkeypatch.setattr(serving, "_end_process", started.append)
    server.server.handle_exit(signal.SIGTERM, None)
    server.server.handle_exit(signal.SIGTERM, None)  # once is enough
    server.thread.join(10)
    assert started == [3 + serving.GRACE]
    assert serving.GRACE < 2
    assert not server.thread.is_alive()
