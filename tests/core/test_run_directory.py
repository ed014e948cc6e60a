"""A run's directory: one process at a time, and everything that explains the run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.description import read_config
from dgpo_core.storage.run_directory import RunDirectory
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]


# -- the lock -------------------------------------------------------------------------------------------------------


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    """File locks belong to open files, so a second one in this process is like one in another."""
    path = tmp_path / "runs" / "a"
    first, second, other = RunDirectory(path), RunDirectory(path), RunDirectory(tmp_path / "runs" / "b")
    first.acquire()
    first.acquire()
    other.acquire()
    with pytest.raises(UserError, match=rf"a is in use by another process \(pid {os.getpid()}\)"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    with pytest.raises(UserError, match="in use"):
        first.acquire()
    for directory in (second, other):
        directory.release()


def test_the_lock_does_not_outlive_its_holder_in_children(tmp_path: Path) -> None:
    """A child that the run started, and that lives on, must not keep the directory."""
    directory = RunDirectory(tmp_path / "a")
    directory.acquire()
    child = subprocess.Popen(
        [sys.executable, "-c", "input(1)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    )
    try:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"1", "it has started"
        directory.release()
        directory.acquire()
        directory.release()
    finally:
        child.communicate(b"\n")
    assert child.returncode == 0


def test_where_no_directory_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"run\.output: cannot write to .*file/a"):
        RunDirectory(tmp_path / "file" / "a").acquire()


@pytest.mark.parametrize("part", ["checkpoints", "images"])
def test_what_a_killed_process_left_is_tidied_up_by_the_next_holder(tmp_path: Path, part: str) -> None:
    path = tmp_path / "a"
    for name in (f"{part}/.000002.old", f"{part}/.000003.writing", "mine/.000002.old"):
        (path / name).mkdir(parents=True)
    directory = RunDirectory(path)
    directory.acquire()
    directory.release()
    assert [p.name for p in (path / part).iterdir()] == ["000002"]
    assert [p.name for p in (path / "mine").iterdir()] == [".000002.old"]


# -- what explains a run --------------------------------------------------------------------------------------------


def described(path: Path, config: RunConfig, registry: Registry) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    RunDirectory(path).describe(config, registry, {"train": {"count": 6}}, None, {})
    found: dict[str, Any] = json.loads((path / "run.json").read_text())
    return found


def test_a_description(tmp_path: Path, make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dgpo", "train", "run.yaml"])
    config = make_config(objective={"clip": None, "beta": 12.5}, timesteps={"t_min": "shift(0.25)"})
    found = described(tmp_path / "a", config, registry)
    assert found["command"] == ["dgpo", "train", "run.yaml"]
    assert found["python"] == platform.python_version()
    assert found["prompts"] == {"train": {"count": 6}}
    assert found["plugins"]["toy"] == "0"
    assert {name: found["versions"][name] for name in ("dgpo", "torch", "pydantic")} == {
        name: importlib.metadata.version(name) for name in ("dgpo", "torch", "pydantic")
    }
    assert read_config(tmp_path / "a") == config


def test_the_state_of_the_repository(
    tmp_path: Path, make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the working directory, which is where a run is started from."""
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))

    def state() -> Any:
        return described(tmp_path / "a", make_config(), registry)["git"]

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    assert state() is None
    git("init")
    assert state() is None, "there is no commit yet"
    (repository / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert state() == {"commit": git("rev-parse", "HEAD"), "clean": True}
    (repository / "file").write_text("2")
    assert state()["clean"] is False
    monkeypatch.setenv("PATH", "")
    assert state() is None, "there is no git"


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "no such run directory"), ("file", "no such run directory"),
     ("empty", r"not a run directory \(it has no config\.yaml\)")],
)  # fmt: skip
def test_what_is_no_run_directory(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"{name}: {message}"):
        read_config(tmp_path / name)


# -- logs -----------------------------------------------------------------------------------------------------------


def test_logs_are_read_back_but_for_a_line_cut_off(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    assert directory.read("metrics.jsonl") == []
    records = [{"iteration": i, "x": [0.1 * i, None]} for i in range(4)]
    directory.append("metrics.jsonl", records[0])
    directory.append("metrics.jsonl", *records[1:])
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"iteration": 4, "x": [0.')
    assert directory.read("metrics.jsonl") == records


def test_rewinding_forgets_what_came_later_in_every_log(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    logs = ("metrics.jsonl", "timings.jsonl", "evaluations.jsonl")
    record = {"seconds": 1.0, "reward": "a", "value": 2}
    for log in logs:
        directory.append(log, *(record | {"iteration": i} for i in range(4)))
    directory.rewind(2)
    for log in logs:
        assert directory.read(log) == [record | {"iteration": i} for i in range(3)]
    directory.rewind(-1)
    assert [directory.read(log) for log in logs] == [[], [], []]
