"""Messages while a run waits for its servers, and stopping the run meanwhile."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import dgpo_remote.reward as reward_module
import dgpo_remote.service.service as service_module
import dgpo_remote.waiting as waiting_module
from dgpo_core.contracts import RewardModel
from dgpo_core.system.stopping import StopRequest
from dgpo_core.types import Prompt
from dgpo_remote.failures import RewardLost
from dgpo_remote.waiting import Waiting

Make = Callable[..., RewardModel]
ONE = (torch.zeros(1, 3, 8, 8), [Prompt("x")])


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_wait_is_logged_at_its_start_and_periodically(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    monkeypatch.setattr(waiting_module, "time", clock)
    waiting = Waiting()

    def reported_at(seconds: int) -> list[str]:
        caplog.clear()
        began = clock.now
        while clock.now < began + seconds:
            for _ in range(3):  # three threads
                waiting.on_message(lambda waited: f"{waited:g}")
            clock.now += 1
        return [record.getMessage() for record in caplog.records]

    assert reported_at(100) == ["0", "5", "35", "65", "95"]
    assert waiting.over()
    assert not waiting.over()
    assert reported_at(4) == [], "the next wait starts too soon to be logged"
    assert not waiting.over()
    assert reported_at(40) == ["5", "35"]
    assert waiting.over()
    clock.now += 61
    assert reported_at(3) == ["0"]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_waiting_for_a_dead_server_is_logged(
    serve: Callable[..., Any], make: Make, warnings: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(waiting_module, "SECOND", 0.05)
    server = serve("conv")
    reward = make("conv", service={"urls": [server.url], "retries": 1, "concurrency": 3})
    server.end()
    with ThreadPoolExecutor(3) as pool:
        lost = [pool.submit(reward.score, *ONE) for _ in range(3)]
    for one in lost:
        with pytest.raises(RewardLost, match="the request failed 2 times"):
            one.result()
    failed, first, second, *rest = warnings()
    assert failed.startswith(f"rewards.0.service: {server.url} failed and is retried later: ConnectError")
    assert first.startswith(f"rewards.0.service: waiting for {server.url} (ConnectError")
    assert "; about 0." in first
    assert re.search(r"s more \([12] more failures?\); then the samples of the request are marked as missing$", first)
    assert second.startswith(f"rewards.0.service: waiting for {server.url} (ConnectError")
    assert rest == []


def test_waiting_for_a_busy_server_is_logged(
    serve: Callable[..., Any], make: Make, warnings: Callable[[], list[str]], parts: Any
) -> None:
    parts.GATE.clear()
    server = serve("moody", queue=1)
    reward = make("moody", service={"urls": [server.url], "retries": 0, "concurrency": 4})
    with ThreadPoolExecutor(4) as pool:
        scores = [pool.submit(reward.score, ONE[0], [Prompt("wait")]) for _ in range(4)]
        while not warnings():
            time.sleep(0.01)
        parts.GATE.set()
        assert [one.result().missing.tolist() for one in scores] == [[False]] * 4
    reported = warnings()
    assert len(reported) == 2
    assert reported[0].startswith(
        f"rewards.0.service: waiting for {server.url} (1 requests are already in progress (queue)); up to 1"
    )
    assert reported[0].endswith(" s more; then the samples of the request are marked as missing")
    assert reported[1] == f"rewards.0.service: {server.url} is available again"


def test_a_slow_response_is_logged(
    serve: Callable[..., Any], make: Make, warnings: Callable[[], list[str]], parts: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(reward_module, "SLOW", 0.0)
    parts.GATE.clear()
    server = serve("moody")
    reward: Any = make("moody", service={"urls": [server.url], "retries": 2})
    reward._timeout = reward._patience = reward._servers.all[0].end._timeout = 0.9
    with ThreadPoolExecutor(1) as pool:
        scores = pool.submit(reward.score, ONE[0], [Prompt("wait")])
        while not warnings():
            time.sleep(0.01)
        parts.GATE.set()
        assert scores.result().missing.tolist() == [False]
    reported = warnings()[0]
    assert reported.startswith(f"rewards.0.service: {server.url} has not answered for 0.")
    assert reported.endswith(" s more, then it is sent again (3 more times)")


@pytest.mark.parametrize("place", ["connection refused", "no answer"])
def test_a_signal_interrupts_the_wait_at_the_start(make: Make, free_port: Callable[[], int], place: str) -> None:
    stop = StopRequest()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1] if place == "no answer" else free_port()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    messages: list[str] = []
    with listening, stop.on_signals(messages.append):
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            make("conv", service={"urls": [f"http://127.0.0.1:{port}"]})
    assert len(messages) == 1


def test_close_interrupts_the_wait_for_a_server(serve: Callable[..., Any], make: Make) -> None:
    server = serve("conv")
    reward = make("conv", service={"urls": [server.url], "retries": 1000})
    server.end()
    with ThreadPoolExecutor(2) as pool:
        scores = [pool.submit(reward.score, *ONE) for _ in range(2)]
        time.sleep(0.05)
        reward.close()  # type: ignore[attr-defined]
        for one in scores:
            with pytest.raises(RewardLost, match="the reward was closed"):
                one.result()
