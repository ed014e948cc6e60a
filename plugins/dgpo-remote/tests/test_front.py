"""`dgpo serve` against callers of whom nothing good is to be expected: each is a small one of its kind."""

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
        (b"hello\r\n\r\n", 400, "no HTTP request"),
        (b"\x16\x03\x01\x02\x00\x01", 400, "TLS"),
        (b"GET  /health HTTP/1.1\r\n" + HOST + b"\r\n", 400, "no HTTP request"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "Host"),
        (b"GET /health HTTP/3.0\r\n" + HOST + b"\r\n", 505, "HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1"),
        (b"GET http://a@localhost/health HTTP/1.1\r\n" + HOST + b"\r\n", 400, "must be a path"),
        (b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "must be a path"),
        (b"GET /he\x00alth HTTP/1.1\r\n" + HOST + b"\r\n", 400, "no HTTP request"),
        (b"GET /health HTTP/1.1\r\nX: a\x00b\r\n" + HOST + b"\r\n", 400, "no HTTP request"),
        (b"GET /health HTTP/1.1\r\nX : a\r\n" + HOST + b"\r\n", 400, "no HTTP request"),
        (b"GET /health HTTP/1.1\r\n folded\r\n" + HOST + b"\r\n", 400, "no HTTP request"),
        (b"GET /%1b%5d0;x%07%0a HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", 404, r"/\x1b]0;x\x07\n"),
        (b"GET /x HTTP/1.1\r\nConnection: close\r\nHost: [\r\n\r\n", 404, "GET /x: Not Found"),
        (SCORE.encode() + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "both"),
        (SCORE.encode() + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "Content-Length"),
        (SCORE.encode() + b"Content-Length: -1\r\n\r\n", 400, "Content-Length"),
        (SCORE.encode() + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "Content-Length"),
        (SCORE.encode() + b"Content-Length: 99999999999999999\r\n\r\n", 413, "max_body_mib"),
        (SCORE.encode() + b"Transfer-Encoding: gzip\r\n\r\n", 501, "Transfer-Encoding"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "no HTTP request"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n", 400, "no HTTP request"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 3000, 400, "chunks hold less"),
        (SCORE.encode() + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 3000, 431, "no HTTP request"),
        (SCORE.encode() + b"Expect: the-unexpected\r\n\r\n", 417, "100-continue"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n", 431, "head_kib"),
        (b"GET /health HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 200 + b"\r\n", 431, "lines"),
        (b"X: y\r\n" * 200, 431, "lines"),
    ],
)  # fmt: skip
def test_what_is_no_http_is_answered_in_json(server: Any, raw: bytes, status: int, message: str) -> None:
    with connected(server, raw) as connection:
        found = error_of(all_of(connection))
    assert (found[0], message in found[2]) == (status, True), found


def test_requests_before_their_turn_are_answered_in_order(server: Any) -> None:
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
def test_a_caller_that_ends_its_side_is_answered(server: Any, version: str) -> None:
    """As `nc -N` does, and whoever sends a file and then reads."""
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
        assert error_of(answer)[2] == f"this is no HTTP request: {message}" if message else answer == b""


def test_a_caller_that_ends_its_side_may_wait_long(
    serve: Serve, gate: threading.Event, parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked whether it is there by an interim answer, of which callers take no notice."""
    monkeypatch.setattr(connections, "ASK", 0.0)
    server, body = serve("moody"), waits()
    with connected(server, f"{SCORE}Content-Length: {len(body)}\r\n\r\n".encode() + body) as connection:
        connection.shutdown(socket.SHUT_WR)
        interim = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert connection.recv(len(interim)) == interim
        gate.set()
        assert all_of(connection).startswith(b"HTTP/1.1 200")


def test_requests_one_after_the_other_share_a_connection(server: Any) -> None:
    with connected(server) as connection:
        for before in (b"", b"\r\n", b"\r\n"):  # old callers end a body with an empty line
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


def test_nobody_is_led_elsewhere(server: Any) -> None:
    answer = httpx.get(f"{server.url}/health/", headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (404, "request")


# -- connections ----------------------------------------------------------------------------------------------------
def test_heads_that_do_not_come(serve: Serve) -> None:
    server = serve("conv", connections={"head_seconds": 0.2})
    with connected(server, b"GET /health HT") as half, connected(server) as silent:
        assert error_of(all_of(half))[::2] == (408, "the head did not come within 0.2 s (connections.head_seconds)")
        assert all_of(silent) == b""
    with connected(server, b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") as connection:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        time.sleep(0.3)  # between two requests there is more time
        connection.sendall(b"GET /health")
        assert error_of(all_of(connection))[0] == 408
    wait_for(lambda: not server.service.pool.connections)


def test_idle_connections_end(serve: Serve) -> None:
    server = serve("conv", connections={"keep_alive_seconds": 0.1})
    with connected(server, b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n") as connection:
        assert b'{"status":"alive"}' in all_of(connection)


def test_a_flood_of_connections_leaves_room(serve: Serve, gate: threading.Event) -> None:
    """The longest waiting makes room; requests under way do not."""
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


def test_callers_that_have_gone_are_not_let_in() -> None:
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
        with pytest.raises((BlockingIOError, ConnectionAbortedError)):  # macOS says the latter
            listening.accept()
        accepted.close()
        there.close()


def test_where_all_connections_work_the_next_is_reported(
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


def test_bodies_that_do_not_come(serve: Serve) -> None:
    server = serve("conv", connections={"body_seconds": 0.1}, limits={"max_body_mib": 4})
    for length in ("Content-Length: 100\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhal"):
        with connected(server, (SCORE + length).encode()) as connection:
            message = "the body did not come within 0.1 s (connections.body_seconds)"
            assert error_of(all_of(connection)) == (408, "timeout", message)
    wait_for(lambda: server.service.inside == 0 and server.service.budget.used == 0)


def test_a_caller_that_does_not_take_its_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv", connections={"answer_seconds": 0.2, "keep_alive_seconds": 60})
    monkeypatch.setattr(type(server.service.counters), "text", lambda self: b"x" * 2**24)
    with connected(server, b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"):
        wait_for(lambda: sum(one.unread_bytes() for one in list(server.service.pool.connections)) > 0)
        wait_for(lambda: not server.service.pool.connections)


def test_answers_that_nobody_takes_are_bounded_together(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv")
    pool = server.service.pool
    monkeypatch.setattr(type(server.service.counters), "text", lambda self: b"x" * 2**24)
    request = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
    with connected(server, request), connected(server, request):
        wait_for(lambda: sum(one.unread_bytes() > 0 for one in list(pool.connections)) == 2)
        monkeypatch.setattr(pool_module, "UNREAD", 2**24)
        wait_for(lambda: len(pool.connections) == 1)
        assert pool.connections.pop().unread_bytes() > 0


def test_a_body_in_a_million_pieces_does_not_stop_the_others(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection takes turns, and all of the body arrives."""
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
def test_there_is_a_descriptor_for_every_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, soft: int, hard: int, fits: int, raised: int
) -> None:
    reported: list[int] = []
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(descriptors.resource, "setrlimit", lambda which, limits: reported.append(limits[0]))
    assert descriptors.connections_that_fit(256) == fits
    assert reported == ([] if raised is None else [raised])
    assert ("connections.max is" in caplog.text) == (fits < 256)


# -- callers that go, and the end -----------------------------------------------------------------------------------
def test_what_is_done_for_a_caller_that_has_gone_ends(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
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


def test_the_end_waits_for_nobody(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    """Neither for heads, bodies, idle connections and answers that are not taken, nor for a reward that hangs, or that
    cannot be closed."""
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


def test_answers_of_the_end_are_delivered(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    server = serve("moody")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(score, server, waits())
        wait_for(lambda: parts.BATCHES == [1])
        server.server.drain()
        with connected(server, b"GET /v1/reward HTTP/1.1\r\n" + HOST + b"\r\n") as late:
            assert error_of(late.recv(2**16)) == (503, "busy", "the service is draining")
        gate.set()
        assert held.result().status_code == 200


def test_health_waits_for_nothing(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    """Not even for the lock with which jobs are handed over."""
    server = serve("moody")
    with server.batcher._change:
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(f"{server.url}{path}", timeout=10).status_code == 200


def test_a_process_that_does_not_end_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()
    statuses: list[int] = []
    monkeypatch.setattr(serving.os, "_exit", lambda status: statuses.append(status) or ended.set())  # type: ignore[func-returns-value]
    serving._end_process(0.0)
    assert ended.wait(10)
    assert statuses == [0]
    assert "did not end within drain_seconds" in caplog.text


def test_a_signal_starts_the_time_of_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv", drain_seconds=3)
    started: list[float] = []
    monkeypatch.setattr(serving, "_end_process", started.append)
    server.server.handle_exit(signal.SIGTERM, None)
    server.server.handle_exit(signal.SIGTERM, None)  # once is enough
    server.thread.join(10)
    assert started == [3 + serving.GRACE]
    assert serving.GRACE < 2
    assert not server.thread.is_alive()
