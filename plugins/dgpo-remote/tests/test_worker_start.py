"""Errors at the start of a worker, and responses that belong to other requests."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

import dgpo_remote.worker.interpreter as interpreter
import dgpo_remote.worker.process as process_module
import dgpo_remote.worker.workers as workers
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.training.scoring import Reward, checked_score
from dgpo_core.types import Prompt, Scores
from dgpo_remote.failures import RewardLost
from dgpo_remote.worker.channel import HEAD, LONGEST, MAGIC, Channel
from dgpo_remote.worker.workers import WorkerReward
from dgpo_schemas.service import PROTOCOL
from tests.working import Make, Samples, _impatient, assert_same, here, moody, pid_of


# -- errors at the start --------------------------------------------------------------------------------------------
def script(path: Path, text: str, mode: int = 0o755) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def refused(make: Make, use: str = "conv", **block: Any) -> str:
    with pytest.raises(UserError) as caught:
        make(use, **block)
    return str(caught.value)


@pytest.mark.usefixtures("tidy")
def test_invalid_interpreters_are_reported(make: Make, tmp_path: Path) -> None:
    where = "rewards.0.worker.python: "
    assert refused(make, worker={"python": "/nowhere/python"}) == (
        f"{where}no such interpreter: /nowhere/python; name one that has dgpo and the reward's plugin installed"
    )
    assert refused(make, worker={"python": str(tmp_path)}).startswith(f"{where}{tmp_path} is a directory; name the")
    python = script(tmp_path / "plain", "", stat.S_IRUSR)
    assert refused(make, worker={"python": python}) == f"{where}{python} is not executable; name a Python interpreter"
    python = script(tmp_path / "text", "just a text")
    assert refused(make, worker={"python": python}) == f"{where}{python} is not a program; name a Python interpreter"
    python = script(tmp_path / "other", "#!/bin/sh\necho what is this: $1\nexit 0\n")
    assert refused(make, worker={"python": python}) == f"{where}{python} is not a Python interpreter: what is this: -u"


@pytest.mark.usefixtures("tidy")
def test_interpreters_without_dgpo_are_reported(make: Make, tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    assert refused(make, worker={"python": bare}) == (
        f"rewards.0.worker.python: {bare} lacks dgpo; install it and the reward's plugin there, in a checkout of dgpo: "
        f"{bare} -m pip install -e . -e plugins/dgpo-remote ..."
    )
    fake = tmp_path / "fake"
    (fake / "dgpo_core").mkdir(parents=True)
    (fake / "dgpo_core" / "__init__.py").touch()
    old = {"environment": {"PYTHONPATH": str(fake)}}
    alone = script(tmp_path / "alone", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    message = refused(make, worker={"python": alone, **old})
    assert (
        f"{alone} lacks dgpo-remote; install the run's version there, in a checkout of dgpo: {alone} -m pip install"
        in message
    )
    (fake / "dgpo_remote" / "worker").mkdir(parents=True)
    for package in ("dgpo_remote", "dgpo_remote/worker"):
        (fake / package / "__init__.py").touch()
    hello = 'import socket, struct, sys\ns = b\'{"protocol": 99, "dgpo": "9.9"}\'\n'
    hello += "socket.socket(fileno=int(sys.argv[1])).sendall(struct.pack('<4sQ', b'DGPO', len(s)) + s)\n"
    (fake / "dgpo_remote" / "worker" / "worker_main.py").write_text(hello)
    message = refused(make, worker=old)
    assert f"{sys.executable} has dgpo 9.9, whose workers use protocol version 99; this run uses" in message
    (fake / "dgpo_remote" / "worker" / "worker_main.py").write_text("raise ImportError('no libnothing.so')")
    assert f"the worker in {sys.executable} did not start: ImportError: no libnothing.so" in refused(make, worker=old)


@pytest.mark.usefixtures("tidy")
def test_a_hanging_interpreter_is_reported(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "PATIENCE", 0.2)
    python = script(tmp_path / "silent", "#!/bin/sh\nexec sleep 60\n")
    message = refused(make, worker={"python": python, "start_timeout": 0.2})
    assert message == f"rewards.0.worker.python: {python} is not a Python interpreter"


@pytest.mark.usefixtures("tidy")
def test_start_timeout(make: Make) -> None:
    message = refused(make, worker={"start_timeout": 0.01})
    assert message == (
        f"rewards.0.worker.python: the worker in {sys.executable} did not start within 0.01 s (worker.start_timeout)"
    )


@pytest.mark.usefixtures("tidy")
def test_an_invalid_description_is_reported(make: Make, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(process: Any, *arguments: Any) -> tuple[str, bytes]:
        return "200", json.dumps({"protocol": PROTOCOL}).encode()

    with monkeypatch.context() as patched:
        patched.setattr(process_module.WorkerProcess, "_exchange", odd)
        message = refused(make, worker={})
    assert message.startswith("rewards.0: the worker for conv sent an invalid description")
    reward = make("conv", worker={"retries": 0})
    assert isinstance(reward, WorkerReward)
    (worker,) = [server.end for server in reward._servers.all]
    for error, expected in ((UserError("odd"), RewardLost), (ZeroDivisionError("odd"), ZeroDivisionError)):
        os.kill(pid_of(reward), signal.SIGKILL)
        with pytest.raises(RewardLost, match="SIGKILL"):
            reward.score(*samples(2))
        with monkeypatch.context() as patched:
            patched.setattr(process_module.WorkerProcess, "greet", Mock(side_effect=error))
            with pytest.raises(expected, match="odd"):
                reward.score(*samples(2))
        assert worker.process is None
        assert reward.score(*samples(2)).missing.tolist() == [False, False]
    reward.close()


STRAY = """
import sys
from dgpo_remote.worker import channel, worker_main

send, kept = channel.Channel.send, []

def sent(self, blob, *, number=0, about="", deadline=None):
    kept.append((blob, number))
    if number > %(after)d:
        stray = kept[%(which)s]
        send(self, stray[0], number=%(number)s, about=about)
    send(self, blob, number=number, about=about, deadline=deadline)
    if number > %(after)d and %(twice)s:
        send(self, blob, number=number, about=about)

channel.Channel.send = sent
sys.exit(worker_main.main(sys.argv[1:]))
"""
"""A worker that sends further responses; number 1 is its description, 2 the first batch."""


def straying(path: Path, **how: Any) -> str:
    """An interpreter whose workers send stray responses."""
    (path / "stray.py").write_text(STRAY % ({"which": -2, "after": 2, "number": "stray[1]", "twice": False} | how))
    return script(path / "python", f'#!/bin/sh\nshift 6\nexec {sys.executable} -u {path}/stray.py "$@"\n')


@pytest.mark.parametrize(
    "how",
    [
        {"twice": True},  # each batch is answered after the one before it, again, and twice
        {"which": 1, "after": 2},  # with the description
        {"which": 1, "number": 1, "after": 1},
    ],
)
def test_late_and_duplicate_responses_are_dropped(
    make: Make, here: RewardModel, samples: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: Any
) -> None:
    reward = make("conv", worker={"python": straying(tmp_path, **how), "retries": 0})
    before = pid_of(reward)
    for turn, count in enumerate((3, 3, 2, 3), 1):
        media, prompts = samples(count)
        media = media / turn
        assert_same(reward.score(media, prompts), here.score(media, prompts))
    assert pid_of(reward) == before
    assert (
        caplog.text.count("the worker sent a late or duplicate response; responses to earlier batches are dropped") == 1
    )
    reward.close()


@pytest.mark.parametrize(("number", "reported"), [("number + 1", "request 3, expected 2"), (0, "request 0")])
def test_responses_to_unknown_requests_are_errors(
    make: Make, samples: Samples, tmp_path: Path, number: Any, reported: str
) -> None:
    python = straying(tmp_path, which=-1, after=1, number=number)
    reward = make("conv", worker={"python": python, "retries": 0})
    with pytest.raises(RewardLost, match=f"sent an invalid response: for {reported}"):
        reward.score(*samples(2))
    reward.close()


def test_an_interrupted_request_leaves_no_response_behind(
    make: Make, here: RewardModel, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next batch gets its own scores."""
    reward = make("conv", worker={"retries": 0})
    media, prompts = samples(3)
    with monkeypatch.context() as patched:
        patched.setattr(Channel, "receive", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reward.score(1 - media, prompts)
    assert_same(reward.score(media, prompts), here.score(media, prompts))
    reward.close()


def test_frames_are_limited(moody: RewardModel, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    local, remote = socket.socketpair()
    with local, remote:
        local.sendall(HEAD.pack(MAGIC, LONGEST + 1))
        with pytest.raises(EOFError, match="does not speak this protocol"):
            Channel(remote).receive()
    before = pid_of(moody)
    media, prompts = samples(4)
    monkeypatch.setattr(process_module, "LONGEST", media.numel() * media.element_size())
    assert checked_score(Reward("moody", 1.0, moody), media, prompts).missing.tolist() == [False] * 4  # in halves
    monkeypatch.setattr(process_module, "LONGEST", 100)
    with pytest.raises(OutOfMemory, match=r"a batch of 0.0 GiB is larger than"):
        moody.score(media, prompts)
    assert pid_of(moody) == before


@pytest.mark.usefixtures("tidy")
def test_unknown_rewards_and_invalid_options_are_reported(make: Make) -> None:
    message = refused(make, "convv", worker={})
    assert message.startswith(
        f"rewards.0.worker.python: {sys.executable} cannot provide convv; install its plugin there"
    )
    assert "unknown reward 'convv'; did you mean conv?" in message
    assert refused(make, worker={}, options={"seed": 13}) == "rewards.0: options.seed: 13 brings bad luck"
    message = refused(make, worker={}, options={"seed": 14})
    assert "the worker for conv was" in message
    assert "SIGKILL" in message
