"""Rewards behind HTTP: load balancing, retries and validation of responses."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from types import ModuleType
from typing import Any

import pytest
import torch

import dgpo_remote.service.http as http_module
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt, Scores
from dgpo_remote.failures import RewardLost, RewardRaised
from dgpo_remote.messages.scores import score_answer, score_request
from dgpo_remote.service.http import _pause
from dgpo_remote.service.service import ServiceReward
from dgpo_schemas.service import REQUEST, SAFETENSORS
from tests.scripted import (
    DESCRIPTION,
    HTML,
    Answer,
    Make,
    Samples,
    Scripted,
    Serve,
    _impatient,
    as_json,
    good,
    script,
    service,
)


def assert_same(one: Scores, other: Scores) -> None:
    assert one.values.view(torch.int32).tolist() == other.values.view(torch.int32).tolist()
    assert one.missing.tolist() == other.missing.tolist()
    assert list(one.diagnostics) == list(other.diagnostics)


@pytest.fixture
def here(make: Make) -> RewardModel:
    return make("conv")


def impatient(reward: RewardModel, timeout: float) -> RewardModel:
    """Set a short timeout after the servers were connected."""
    assert isinstance(reward, ServiceReward)
    reward._timeout = reward._patience = timeout
    for server in reward._servers.all:
        server.end._timeout = timeout  # type: ignore[attr-defined]
    return reward


# -- the same as a local reward -------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 3, 24, 20), (0, 3, 8, 8), (3, 2, 3, 9, 9), (2, 0, 3, 9, 9)])
def test_scores_are_bit_identical(
    serve: Serve, make: Make, here: RewardModel, samples: Samples, shape: tuple[int, ...]
) -> None:
    reward = make("conv", service=service(f"{serve('conv').url}/"))
    media, prompts = samples(*shape)
    assert_same(reward.score(media, prompts), here.score(media, prompts))
    permuted = media.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert_same(reward.score(permuted, prompts), here.score(permuted, prompts))


def test_it_has_the_attributes_of_its_reward(serve: Serve, make: Make, here: RewardModel) -> None:
    reward = make("conv", service=service(serve("conv"), serve("conv"), concurrency=3))
    assert (reward.range, reward.media, reward.group_by) == (here.range, here.media, here.group_by)
    assert reward.concurrency == 6
    assert reward.provenance() == {"model": "conv-0", "layers": [3, 16]}
    reward.check_prompts([Prompt("good")])
    with pytest.raises(UserError, match=r"^the prompt 'bad' is a bad one$"):
        reward.check_prompts([Prompt("bad")])
    with pytest.raises(UserError, match=r"^rewards.0.service: ZeroDivisionError: it is all too much$"):
        reward.check_prompts([Prompt("break")])
    for one, other in zip(reward.examples(), here.examples(), strict=True):
        assert (one.name, one.prompt, one.good) == (other.name, other.prompt, other.good)
        assert torch.equal(one.media, other.media)


def test_the_reward_s_own_error_is_not_retried(serve: Serve, make: Make, samples: Samples, parts: ModuleType) -> None:
    reward = make("moody", service=service(serve("moody")))
    parts.BATCHES.clear()
    media, prompts = samples(2)
    with pytest.raises(RewardRaised, match=r"^RuntimeError: the lamp is broken$"):
        reward.score(media, [Prompt("raise"), prompts[1]])
    assert parts.BATCHES == [2]
    starving = [Prompt("starve")] * 5
    assert reward.score(samples(5)[0], starving).values.shape == (5,)
    assert parts.BATCHES[1:] == [5, 3, 2, 1, 2]


def test_a_request_that_is_too_large_is_split(
    serve: Serve, make: Make, samples: Samples, here: RewardModel, script: Callable[..., Scripted]
) -> None:
    reward = make("conv", service=service(serve("conv", limits={"max_samples": 2})))
    media, prompts = samples(5)
    halves = [here.score(media[i:j], prompts[i:j]).values for i, j in ((0, 2), (2, 3), (3, 5))]
    assert reward.score(media, prompts).values.tolist() == torch.cat(halves).tolist()
    refusal = as_json({"error": {"kind": "size", "message": "far too large"}}, 413)
    server = script(score=[refusal], check=[refusal])
    reward = make("conv", service=service(server))
    with pytest.raises(RewardLost, match=r"refused the request: far too large"):  # the first sample of all
        reward.score(media, prompts)
    assert server.asked.count("/v1/score") == 4  # 5, 3, 2, 1 samples
    with pytest.raises(UserError, match=r"^rewards.0.service: http://127.* refused the request: far too large$"):
        reward.check_prompts(prompts)


def test_a_full_server_is_waited_for(
    serve: Serve, make: Make, samples: Samples, parts: ModuleType, here: RewardModel
) -> None:
    parts.GATE.set()
    reward = make("moody", service=service(serve("moody", queue=1), concurrency=8, retries=0))
    batches = [samples(2, seed=seed) for seed in range(8)]
    for batch in batches:
        batch[1][0] = Prompt("wait")
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda batch: reward.score(*batch), batches))
    for one, batch in zip(scores, batches, strict=True):
        assert_same(one, here.score(*batch))


# -- failures and retries -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "failure",
    [
        None,
        HTML,
        (500, {}, b"oops"),
        (502, {}, b"<html>bad gateway</html>"),
        (504, {}, b""),
        (200, {}, b""),
        good(3),
        (200, {"Content-Encoding": "gzip"}, good()[2]),
        (200, {}, good()[2][:-1]),
        as_json({"values": [1, 2]}),
        (302, {"Location": "http://127.0.0.1:1/"}, b""),
        as_json({"error": {"kind": "timeout", "message": "late"}}, 504),
    ],
)
def test_failures_are_retried_until_the_limit(
    script: Callable[..., Scripted], make: Make, samples: Samples, caplog: pytest.LogCaptureFixture, failure: Any
) -> None:
    media, prompts = samples(2)
    server = script(score=[failure, failure, good()])
    reward = make("conv", service=service(server, retries=2))
    assert reward.score(media, prompts).values.tolist() == [0.5, 0.5]
    assert server.asked.count("/ready") == 2
    assert "is retried later" in caplog.text
    assert "is available again" in caplog.text
    server.script["/v1/score"] = [failure]
    with pytest.raises(RewardLost, match=rf"^the request failed 3 times; the last at {server.url}: "):
        reward.score(media, prompts)
    server.script["/v1/score"] = [good()]
    assert reward.score(media, prompts).missing.tolist() == [False, False]


def test_a_duplicate_response_is_not_taken_for_the_next_request_s(
    script: Callable[..., Scripted], make: Make, samples: Samples
) -> None:
    """On a reused connection, where the duplicate would be read first."""
    media, _ = samples(1)

    def twice(handler: Any) -> Answer:
        number, length = handler.headers[REQUEST], float(handler.headers["Content-Length"])
        found = Scores(torch.tensor([length]), torch.zeros(1, dtype=torch.bool))
        body, headers = score_answer(found), {"Content-Type": SAFETENSORS, REQUEST: number}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body)
        return 200, headers, body

    reward = make("conv", service=service(script(score=[twice]), retries=3))
    for length in (1, 50, 100):
        prompts = [Prompt("x" * length)]
        assert reward.score(media, prompts).values.tolist() == [len(score_request(media, prompts))]


def test_a_slow_server_times_out(script: Callable[..., Scripted], make: Make, samples: Samples) -> None:
    gate = threading.Event()

    def slow(handler: Any) -> Answer:
        gate.wait(10)
        return good()

    server = script(score=[slow, good()])
    reward = impatient(make("conv", service=service(server, retries=50)), 0.2)
    assert reward.score(*samples(2)).values.tolist() == [0.5, 0.5]
    gate.set()
    assert server.asked.count("/v1/score") >= 2


def test_a_dripping_response_times_out(script: Callable[..., Scripted], make: Make, samples: Samples) -> None:
    """Each byte arrives in time, but not the whole response."""
    stopped = threading.Event()

    def drip(handler: Any) -> Answer:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while not stopped.wait(0.01):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        handler.close_connection = True
        return 200, {}, b""

    reward = impatient(make("conv", service=service(script(score=[drip]), retries=0)), 0.2)
    with pytest.raises(RewardLost, match=r"no complete response within 0.2 s"):
        reward.score(*samples(2))
    stopped.set()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_response_is_not_a_failure(
    script: Callable[..., Scripted], make: Make, samples: Samples, status: int
) -> None:
    busy = as_json({"error": {"kind": "busy", "message": "full"}}, status, **{"Retry-After": "0.01"})
    server = script(score=[busy] * 5 + [good()])
    reward = make("conv", service=service(server, retries=0))
    assert reward.score(*samples(2)).values.tolist() == [0.5, 0.5]
    assert server.asked.count("/v1/score") == 6
    server.script["/v1/score"] = [busy]
    with pytest.raises(RewardLost, match=rf"no server accepted the request within 0.2 s: {server.url}: full"):
        impatient(reward, 0.2).score(*samples(2))


def test_pauses() -> None:
    assert _pause(None) == 1
    assert _pause("2.5") == 2.5
    assert _pause("0") == _pause("-5") == _pause("nan") == 0.1
    assert _pause("1e9") == http_module.MAX_PAUSE
    assert _pause("soon") == 1
    assert _pause("Wed, 21 Oct 2015 07:28:00 GMT") == 0.1
    assert _pause(formatdate(4e9, usegmt=True)) == http_module.MAX_PAUSE


def test_a_dead_server_is_taken_out_and_comes_back(
    script: Callable[..., Scripted], make: Make, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = script(), script()
    reward = make("conv", service=service(one, two, concurrency=2))
    media, prompts = samples(2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: reward.score(media, prompts), range(40)))
    assert min(one.asked.count("/v1/score"), two.asked.count("/v1/score")) >= 5
    one.script["/v1/score"] = one.script["/v1/reward"] = one.script["/ready"] = [None]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: reward.score(media, prompts), range(40)))
    assert f"{one.url} failed and is retried later" in caplog.text
    assert one.asked.count("/v1/score") < 40, "it is probed, but gets no requests"
    one.script["/ready"] = [as_json({"status": "ready"})]
    one.script["/v1/reward"] = [as_json(DESCRIPTION | {"options": {"seed": 1, "scale": 1.0}})]  # it has changed
    for _ in range(20):
        reward.score(media, prompts)
    before = one.asked.count("/v1/score")
    assert f"{one.url} is available again" not in caplog.text
    assert isinstance(reward, ServiceReward)
    reward._servers.all[0].failures = 0  # skip the backoff
    reward._servers.all[0].not_before = 0.0
    one.script["/v1/score"], one.script["/v1/reward"] = [good()], [as_json(DESCRIPTION)]
    for _ in range(5):
        reward.score(media, prompts)
    assert f"{one.url} is available again" in caplog.text
    assert one.asked.count("/v1/score") > before


def test_one_of_two_servers_is_unavailable_at_the_start(
    script: Callable[..., Scripted], make: Make, samples: Samples, caplog: pytest.LogCaptureFixture,
    free_port: Callable[[], int],
) -> None:  # fmt: skip
    dead = f"http://127.0.0.1:{free_port()}"
    reward = make("conv", service=service(dead, script()))
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage().startswith(f"rewards.0.service: {dead} does not respond and is retried later: Conn")
    for _ in range(3):
        assert reward.score(*samples(2)).values.tolist() == [0.5, 0.5]


def test_requests_fail_after_close(script: Callable[..., Scripted], make: Make, samples: Samples) -> None:
    reward = make("conv", service=service(script(), retries=0))
    reward.close()
    with pytest.raises(RewardLost, match="the reward was closed"):
        reward.score(*samples(2))
