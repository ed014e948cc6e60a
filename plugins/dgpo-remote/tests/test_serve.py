"""`dgpo serve`: reward files, and errors at the start."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    path = tmp_path / "reward.yaml"
    path.write_text("reward: {use: brightness, options: {scale: 2}}\nport: 0\n")
    return path


def test_a_port_in_use_is_named(dgpo: Run, reward: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = dgpo("serve", reward, "--set", f"port={port}")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"port: {port} on 127.0.0.1 is in use by another program; choose another, such as --set port={port + 1}\n"
    )


def test_a_token_that_is_not_set(dgpo: Run, reward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    done = dgpo("serve", reward, "--set", "token_variable=REWARD_TOKEN")
    assert done.code == 2
    assert done.err.startswith("token_variable: the environment variable REWARD_TOKEN is not set")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "reward: {use: brihgtness}",
            "reward.yaml:1: reward.use: unknown reward 'brihgtness'; did you mean brightness?",
        ),
        ("reward: {use: brightness, options: {scael: 1}}", "reward.options.scael: unknown key; did you mean scale?"),
        ("reward: brihgtness", "reward.yaml:1: reward: unknown reward 'brihgtness'; did you mean brightness?"),
        ("{}", "reward: is missing"),
        ("reward: brightness\nprot: 1", "reward.yaml:2: prot: unknown key; did you mean port?"),
        ("reward: brightness\nport: 70000", "port: must be"),
        ("reward: brightness\nhost: 0.0.0.0", "host 0.0.0.0 can be reached from other machines; set `token_variable`"),
        ("reward: brightness\nhost: example.org", "host example.org can be reached from other machines"),
        ("reward: {use: brightness, weight: 2}", "reward.weight: unknown key"),
        ("reward: brightness\nbatching: {max_batch: 0}", "batching.max_batch: must be"),
    ],
)
def test_errors_in_a_reward_file(dgpo: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "reward.yaml").write_text(text)
    done = dgpo("serve", tmp_path / "reward.yaml")
    assert done.code == 2
    assert message in done.err


def test_a_reward_that_cannot_be_loaded_is_reported(dgpo: Run, tmp_path: Path) -> None:
    (tmp_path / "reward.yaml").write_text("reward: {use: unheard-of, worker: {python: /nowhere/python}}\nport: 0\n")
    done = dgpo("serve", tmp_path / "reward.yaml")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("reward.worker.python: no such interpreter: /nowhere/python")
