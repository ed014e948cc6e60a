"""The client against servers that misbehave, and what it makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

import dgpo_judge.endpoints as endpoints_module
from dgpo_core.errors import UserError
from dgpo_judge import demo_server
from dgpo_judge.demo_server import answer_to, send
from dgpo_judge.failures import retry_after

from .conftest import Playing, Respond, cut, first, good, hang, pictures, status
from .test_rewards import prompts

Judge = Callable[..., Any]
Play = Callable[..., Playing]

HTML = status(200, b"<html><h1>Welcome to nginx!</h1></html>", Content_Type="text/html")


def says(data: Any, **headers: str) -> Respond:
    return status(200, data if isinstance(data, bytes) else json.dumps(data).encode(), **headers)


def long_body(handler: Any, request: Any) -> None:
    """More than announced: the rest is not read."""
    body = json.dumps(answer_to(request)).encode()
    send(handler, 200, body[:-1], Content_Length="9")
    handler.close_connection = True


def short_length(handler: Any, request: Any) -> None:
    body = json.dumps(answer_to(request)).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body) - 9))
    handler.end_headers()
    handler.wfile.write(body)
    handler.close_connection = True


@pytest.mark.parametrize(
    "fault",
    [status(500), status(502), status(503), status(408), hang(0), hang(0.5), cut, short_length, HTML, says(b""),
     says(b"[1]"), says(b'{"choices": NaN}'), says(b"\xff\xfe")],
)  # fmt: skip
def test_what_another_try_may_help_is_tried_again(play: Play, judge: Judge, fault: Respond) -> None:
    server = play(first(fault, fault))
    reward = judge(server, retries=2, timeout=0.2, concurrency=1)
    assert not reward.score(pictures(2), prompts(2)).missing.any()
    assert len(server.requests) == 4
    server = play(fault)
    reward = judge(server, retries=2, timeout=0.2, concurrency=1)
    scores = reward.score(pictures(1), prompts(1))
    assert scores.missing.all()
    assert scores.diagnostics[0]["reason"].startswith("failed 3 times, at last http")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (says(gzip.compress(b"{}"), Content_Encoding="gzip"), "unrequested Content-Encoding gzip"),
        (says(b'{"' + b"x" * (9 * 2**20)), "larger than 8 MiB"),
        (status(301, b"", Location="http://user:secret@elsewhere/v1"), "a redirect to http://elsewhere/v1"),
        (status(413), "status 413"),
        (status(418), "status 418"),
    ],
)
def test_what_no_other_try_helps_is_missing(play: Play, judge: Judge, fault: Respond, reason: str) -> None:
    server = play(first(good, then=fault))
    reward = judge(server, concurrency=1)
    scores = reward.score(pictures(2), prompts(2))
    assert scores.missing.tolist() == [False, True]
    assert reason in scores.diagnostics[1]["reason"]
    assert "secret" not in scores.diagnostics[1]["reason"]
    assert len(server.requests) == 2


def test_a_pause_that_a_server_asks_for_is_kept_by_all_requests(play: Play, judge: Judge) -> None:
    times: list[float] = []

    def busy(handler: Any, request: Any) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            return send(handler, 429, b"{}", **{"Retry-After": "0.6"})
        return good(handler, request)

    reward = judge(play(busy), retries=0, concurrency=1)
    assert not reward.score(pictures(3), prompts(3)).missing.any(), "a pause is no failure"
    assert times[1] - times[0] >= 0.6


def test_another_server_answers_meanwhile(play: Play, judge: Judge) -> None:
    busy, free = play(status(429, Retry_After="3600")), play()
    reward = judge([busy, free], concurrency=2)
    assert not reward.score(pictures(6), prompts(6)).missing.any()
    assert len(busy.requests) <= 2
    assert len(free.requests) == 6


def test_retry_after_is_a_number_or_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert retry_after("7") == 7
    assert 80 < (retry_after(soon) or 0) <= 90
    assert retry_after(format_datetime(datetime(2001, 1, 1, tzinfo=UTC))) == 0
    assert retry_after("1e99") == 600
    assert [retry_after(value) for value in (None, "soon", "nan", "")] == [None] * 4
    assert retry_after("-5") == 0


def test_pauses_of_no_length_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Retry-After: 0` and dates that have passed do not make a busy loop; longer pauses are kept as they are."""
    monkeypatch.setattr(endpoints_module, "FIRST_WAIT", 4.0)
    long_ago = retry_after(format_datetime(datetime(2001, 1, 1, tzinfo=UTC)))

    async def waits(*asked: float | None) -> list[float]:
        endpoints = endpoints_module.Endpoints(["http://a"], 1)
        (endpoint,), found = endpoints.all, []
        for seconds in asked:
            endpoint.not_before = 0.0
            await endpoints.paused(endpoint, seconds, "busy")
            found.append(endpoint.not_before - time.monotonic())
        return found

    for short in (0.0, long_ago, 1e-3, None):
        for wait, least in zip(asyncio.run(waits(short, short, short)), (2, 4, 8), strict=True):
            assert least - 1 < wait <= 3 * least
    assert asyncio.run(waits(300.0, 4.0))[0] > 290
    assert 3 < asyncio.run(waits(300.0, 4.0))[1] <= 4


def test_a_call_that_ends_with_the_wait_has_its_result(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait is over, and before anyone looks the work is done."""

    class Late(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            if timeout is not None:
                raise TimeoutError
            return super().result()

    client, late, failed = judge(play()).judge.client, Late(), Late()
    late.set_result("done")
    failed.set_exception(TimeoutError("its own"))

    async def work() -> str:
        return "not run here"

    with monkeypatch.context() as patch:
        for future, ends in ((late, contextlib.nullcontext()), (failed, pytest.raises(TimeoutError, match="its own"))):
            patch.setattr(asyncio, "run_coroutine_threadsafe", lambda coroutine, loop, f=future: coroutine.close() or f)
            with ends:
                assert client._call(work()) == "done"


def test_patience_bounds_everything(play: Play, judge: Judge) -> None:
    for fault in (status(429), hang(5), status(503, Retry_After="1000")):
        reward = judge(play(fault), patience=0.3, retries=100)
        scores = reward.score(pictures(1), prompts(1))
        assert scores.missing.all()
        assert scores.diagnostics[0]["reason"].startswith("no answer within 0.3 s (http")


def test_as_many_requests_are_in_flight_as_is_allowed(play: Play, judge: Judge) -> None:
    """64 at once: the server lets none go until all have come."""
    together = threading.Barrier(64)

    def waits(handler: Any, request: Any) -> None:
        together.wait(20)
        good(handler, request)

    server = play(waits)
    reward = judge(server)
    assert not reward.score(pictures(128, size=(3, 32, 32)), prompts(128)).missing.any()
    assert server.most_in_flight == 64
    assert reward.judge.client.endpoints.in_flight_high == 64


def test_a_server_that_is_killed_and_restarted_costs_no_score(play: Play, judge: Judge) -> None:
    """Connections break in the middle of answers, then there is no server for a while, then there is one again."""
    began = threading.Semaphore(0)

    def slow(handler: Any, request: Any) -> None:
        began.release()
        time.sleep(0.2)
        handler.close_connection = True  # killed before the answer

    dying = play(slow)
    reward = judge(dying, concurrency=4, retries=3)
    found: list[Any] = []
    work = threading.Thread(target=lambda: found.append(reward.score(pictures(12), prompts(12))))
    work.start()
    assert began.acquire(timeout=10)
    dying.close()
    time.sleep(0.5)
    again = play(port=int(dying.url.rpartition(":")[2]))
    work.join(30)
    assert not found[0].missing.any()
    assert len(again.requests) == 12


def test_the_thread_is_one_for_any_number_of_batches(play: Play, judge: Judge) -> None:
    reward = judge(play())
    for _ in range(3):
        reward.score(pictures(2), prompts(2))
    assert sum(thread.name == "judge" for thread in threading.enumerate()) == 1
    reward.close()
    reward.close()
    assert not any(thread.name == "judge" for thread in threading.enumerate())


def test_closing_ends_a_call_that_waits(play: Play, judge: Judge) -> None:
    reward = judge(play(hang(20)))
    ended: list[BaseException | None] = []

    def score() -> None:
        try:
            reward.score(pictures(1), prompts(1))
        except BaseException as error:
            ended.append(error)

    work = threading.Thread(target=score, daemon=True)
    work.start()
    time.sleep(0.2)
    reward.close()
    work.join(10)
    assert not work.is_alive()
    assert len(ended) == 1


# -- at the start ---------------------------------------------------------------------------------------------------


def test_models(play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = judge(play())
    assert reward.judge.model == "demo-judge"
    with pytest.raises(UserError, match="does not serve 'other'; it serves demo-judge"):
        judge(play(), model="other")
    monkeypatch.setattr("dgpo_judge.demo_server.MODEL", "renamed")
    assert judge(play()).judge.model == "renamed"


@pytest.mark.parametrize(
    ("models", "complaint"),
    [
        ({"data": [{"id": "a"}, {"id": "b"}]}, "serves several models, name one: a, b"),
        ({"data": []}, "serves several models, name one: none"),
        ({"models": []}, "does not list models: not an OpenAI-compatible server"),
        ([], "does not list models"),
        (b"<html>", "does not list models"),
        ((401, b"no key"), "answers status 401: 'no key'; name the environment variable with the server's token"),
        ((404, b""), "answers status 404: an empty response"),
    ],
)
def test_servers_that_cannot_be_used_are_refused_at_the_start(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, models: Any, complaint: str
) -> None:
    code, body = models if isinstance(models, tuple) else (200, models)
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    monkeypatch.setattr("dgpo_judge.demo_server._Handler.do_GET", lambda handler: send(handler, code, body))
    with pytest.raises(UserError, match=complaint):
        judge(play())
    assert not any(thread.name == "judge" for thread in threading.enumerate())


def test_no_server_at_all(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dgpo_judge.client.PATIENT", 0.0)
    server = play()
    server.close()
    with pytest.raises(UserError, match=r"reward 'judge': urls: no server can be reached \(http://127.*is it started"):
        judge(server)
    assert caplog.text.count("waits up to") == 1, "a person is told why nothing happens"


def test_the_demo_server_names_a_port_that_is_taken(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    port = play().url.rpartition(":")[2]
    assert demo_server.main([port]) == 2
    assert capsys.readouterr().err == f"port {port} cannot be used: Address already in use; give another one\n"


def test_one_of_two_servers_is_enough_to_start(play: Play, judge: Judge, caplog: pytest.LogCaptureFixture) -> None:
    down, up = play(), play()
    down.close()
    reward = judge([down, up])
    assert f"{down.url} cannot be reached and is tried again" in caplog.text
    assert not reward.score(pictures(4), prompts(4)).missing.any()


def test_proxies_of_the_environment(play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on this machine is not reached through a proxy; a variable that is no address is named."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert not judge(play()).score(pictures(1), prompts(1)).missing.any()
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    with pytest.raises(UserError, match="the proxy or certificate variables of the environment are invalid"):
        judge(play())
