"""The service: batches, queues, timeouts, start and shutdown."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import BrightnessOptions, BrightnessReward
from dgpo_remote.messages.blobs import Blob
from dgpo_remote.messages.scores import read_score_answer, score_request
from dgpo_remote.server.batcher import Batcher
from dgpo_remote.server.counters import Counters
from dgpo_remote.server.server import bind
from dgpo_remote.tokens import read_token
from dgpo_schemas.serve import BatchingSection
from dgpo_schemas.service import SAFETENSORS

Serve = Callable[..., Any]
Make = Callable[..., RewardModel]
Samples = Callable[..., tuple[Tensor, list[Prompt]]]
TOKEN = "a long secret"


@pytest.fixture(scope="module")
def server(serve_all_along: Serve) -> Any:
    """A server with a token and low limits."""
    limits = {"max_body_mib": 1, "max_side": 64, "max_frames": 3, "max_samples": 8}
    return serve_all_along("moody", token=TOKEN, limits=limits)


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as made:
        yield made


@pytest.fixture
def here(make: Make) -> RewardModel:
    return make("moody")


@pytest.fixture
def gate(parts: ModuleType) -> Iterator[threading.Event]:
    """The event that the prompt `wait` waits for."""
    parts.GATE.clear()
    parts.BATCHES.clear()
    yield parts.GATE
    parts.GATE.set()


def post_tensors(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    return client.post("/v1/score", content=body, headers={"Content-Type": SAFETENSORS} | headers)


def still_serves(client: httpx.Client) -> None:
    answer = post_tensors(client, score_request(torch.zeros(1, 3, 8, 8), [Prompt("x")]))
    assert answer.status_code == 200


# -- batches, queues, timeouts --------------------------------------------------------------------------------------
def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("the condition did not become true")


@pytest.mark.parametrize(("device", "threads"), [("cpu", 3), ("mps", 1)])
def test_a_reward_on_mps_has_one_thread(device: str, threads: int) -> None:
    """torch ends the process if two threads use MPS at once."""

    class Busy(BrightnessReward):
        concurrency = 3

    batcher = Batcher(
        lambda: Busy(BrightnessOptions(), device=torch.device(device)), BatchingSection(), Counters()
    )  # fmt: skip
    batcher.start()
    wait_for(lambda: batcher.reward is not None)
    assert len(batcher._threads) == threads
    batcher.close()


def test_small_requests_are_scored_together(
    serve: Serve, gate: threading.Event, parts: ModuleType, here: RewardModel, samples: Samples
) -> None:
    server = serve("moody", batching={"max_batch": 6, "max_wait_ms": 50}, queue=20)
    media, prompts = samples(20)
    expected = here.score(media, prompts)
    parts.BATCHES.clear()
    with ThreadPoolExecutor(12) as pool, httpx.Client(base_url=server.url, timeout=20) as client:

        def send(first: int, last: int, alone: bool = False) -> Scores:
            body = score_request(media[first:last], prompts[first:last], alone=alone)
            return read_score_answer(Blob(post_tensors(client, body).content))

        held = pool.submit(lambda: post_tensors(client, score_request(media[:1], [Prompt("wait")])))
        wait_for(lambda: parts.BATCHES == [1])
        cuts = [(0, 2), (2, 4), (4, 5), (5, 6), (6, 8)]  # the last does not fit into six
        sent = []
        for cut in cuts:
            sent.append(pool.submit(send, *cut))
            wait_for(lambda: server.batcher.waiting() == len(sent))
        sent.append(pool.submit(send, 8, 10, True))
        wait_for(lambda: server.batcher.waiting() == len(sent))
        gate.set()
        for (first, last), future in zip([*cuts, (8, 10)], sent, strict=True):
            torch.testing.assert_close(future.result().values, expected.values[first:last])
            assert future.result().diagnostics == expected.diagnostics[first:last]
        assert held.result().status_code == 200
    assert parts.BATCHES[:4] == [1, 6, 2, 2]


def test_a_failing_request_does_not_affect_others_in_its_batch(
    serve: Serve, gate: threading.Event, parts: ModuleType
) -> None:
    server = serve("moody", queue=20)
    media = torch.zeros(1, 3, 8, 8)
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, timeout=20) as client:
        held = pool.submit(lambda: post_tensors(client, score_request(media, [Prompt("wait")])))
        wait_for(lambda: parts.BATCHES == [1])

        def send(text: str) -> httpx.Response:
            return post_tensors(client, score_request(media, [Prompt(text)], alone=False))

        sent = [pool.submit(send, text) for text in ("x", "raise", "y")]
        wait_for(lambda: server.batcher.waiting() == 3)
        gate.set()
        assert [future.result().status_code for future in sent] == [200, 500, 200]
        assert held.result().status_code == 200


def test_a_full_service_asks_clients_to_retry(serve: Serve, gate: threading.Event, parts: ModuleType) -> None:
    server = serve("moody", queue=2)
    media = torch.zeros(1, 3, 8, 8)
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, timeout=20) as client:
        held = [pool.submit(lambda: post_tensors(client, score_request(media, [Prompt("wait")]))) for _ in range(2)]
        wait_for(lambda: server.service.inside == 2)
        refused = post_tensors(client, score_request(media, [Prompt("x")]))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["kind"] == "busy"
        assert client.get("/v1/examples").status_code == 503
        gate.set()
        assert [future.result().status_code for future in held] == [200, 200]
        still_serves(client)


def test_a_hanging_reward_times_out(serve: Serve, gate: threading.Event) -> None:
    server = serve("moody", timeout=0.1)
    with httpx.Client(base_url=server.url, timeout=20) as client:
        answer = post_tensors(client, score_request(torch.zeros(1, 3, 8, 8), [Prompt("wait")]))
        assert (answer.status_code, answer.json()["error"]["kind"]) == (504, "timeout")
        wait_for(lambda: client.get("/ready").json() == {"status": "stuck"})
        gate.set()
        wait_for(lambda: client.get("/ready").json() == {"status": "ready"})
        body = score_request(torch.zeros(1, 3, 8, 8), [Prompt("x")])
        wait_for(lambda: post_tensors(client, body).status_code == 200)


def test_a_body_that_does_not_arrive_times_out(serve: Serve) -> None:
    server = serve("conv", timeout=0.1)
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        head = (
            f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: {SAFETENSORS}\r\nContent-Length: 100\r\n\r\n"
        )
        connection.sendall(head.encode())
        connection.settimeout(20)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_many_clients_at_once(serve: Serve, here: RewardModel, samples: Samples) -> None:
    """Sixteen clients, briefly; `benchmarks/service.py` does it for a minute."""
    server = serve("moody", queue=64)
    media, prompts = samples(16, 3, 12, 12)
    expected = here.score(media, prompts).values

    def hammer(number: int) -> None:
        body = score_request(media[number : number + 1], prompts[number : number + 1], alone=number % 2 == 0)
        with httpx.Client(base_url=server.url, timeout=20) as client:
            for _ in range(12):
                answer = post_tensors(client, body)
                assert answer.status_code == 200, answer.text
                torch.testing.assert_close(
                    read_score_answer(Blob(answer.content)).values, expected[number : number + 1]
                )

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(hammer, range(16)))


# -- start and shutdown ---------------------------------------------------------------------------------------------
def test_requests_in_progress_finish_at_shutdown(
    serve: Serve, gate: threading.Event, parts: ModuleType, samples: Samples
) -> None:
    server = serve("moody")
    media, prompts = samples(2)
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=server.url, timeout=20) as client:

        def send(text: str) -> httpx.Response:
            return post_tensors(client, score_request(media, [Prompt(text), *prompts[1:]]))

        held = [pool.submit(send, "wait")]
        wait_for(lambda: parts.BATCHES == [2])
        held += [pool.submit(send, text) for text in ("x", "y")]
        wait_for(lambda: server.service.inside == 3)
        held.append(pool.submit(client.get, "/v1/examples"))
        wait_for(lambda: server.service.inside == 4)
        server.server.drain()
        with httpx.Client(base_url=server.url) as other:
            assert (other.get("/ready").status_code, other.get("/ready").json()) == (503, {"status": "draining"})
            assert other.get("/health").status_code == 200
            refused = post_tensors(other, score_request(media, prompts))
            assert (refused.status_code, refused.json()["error"]["message"]) == (503, "the service is draining")
        gate.set()
        assert [future.result().status_code for future in held] == [200] * 4
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert "stopping: 4 requests in progress" in server.lines
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_draining_is_limited_in_time(serve: Serve, gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    server = serve("moody", drain_seconds=0.1)
    thread = threading.Thread(target=_ignore, args=(server.url,))
    thread.start()
    wait_for(lambda: server.service.inside == 1)
    server.server.drain()
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert "1 requests did not finish within drain_seconds" in caplog.text
    thread.join(20)


def _ignore(url: str) -> None:
    try:
        with httpx.Client(base_url=url, timeout=20) as client:
            post_tensors(client, score_request(torch.zeros(1, 3, 8, 8), [Prompt("wait")]))
    except httpx.HTTPError:
        pass


def test_the_service_is_alive_before_it_is_ready(
    serve: Serve, parts: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, build = threading.Event(), parts.Conv.__init__

    def slow(*arguments: Any, **keywords: Any) -> None:
        assert loaded.wait(20)
        build(*arguments, **keywords)

    monkeypatch.setattr(parts.Conv, "__init__", slow)
    server = serve("conv", ready=False)
    assert httpx.get(f"{server.url}/health").json() == {"status": "alive"}
    for path in ("/ready", "/v1/reward"):
        assert httpx.get(f"{server.url}{path}").status_code == 503
    assert httpx.get(f"{server.url}/ready").json() == {"status": "loading"}
    loaded.set()
    server.wait_until_ready()
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}


def test_a_reward_that_cannot_be_loaded_stops_the_service(serve: Serve) -> None:
    server = serve("conv", reward={"use": "conv", "options": {"seed": 13}}, ready=False)
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert str(server.batcher.failure) == "options.seed: 13 brings bad luck"


def test_an_unusable_port_or_host_is_reported(free_port: Callable[[], int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port: {port} on 127.0.0.1 is in use by another program; choose"):
            bind("127.0.0.1", port)
    for host in ("host.invalid", "192.0.2.1", "a" * 300):
        with pytest.raises(UserError, match=r"^host: .* is not an address of this machine"):
            bind(host, free_port())


def test_a_token_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", " ")
    with pytest.raises(UserError, match="variable REWARD_TOKEN is not set"):
        read_token("REWARD_TOKEN")
    monkeypatch.setenv("REWARD_TOKEN", " secret\n")
    assert read_token("REWARD_TOKEN") == "secret"
    assert read_token(None) is None
