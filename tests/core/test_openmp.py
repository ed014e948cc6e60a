"""How torch's threads wait is chosen before torch is loaded, by whatever loads it, and by nobody where a person has."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dgpo_core.system import openmp
from dgpo_core.system.openmp import ALONE, BESIDE, KNOWN, others_at_work, spin_briefly
from dgpo_kit.toy import run_data
from dgpo_remote.worker.channel import Channel
from dgpo_remote.worker.process import WorkerSpec

WATCH = """
import json, os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(json.dumps({name: os.environ.get(name) for name in %r}), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
""" % (KNOWN,)  # noqa: UP031 - braces abound
"""Runs a module up to where it imports torch, and prints what the environment says then."""


def environment(**own: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in KNOWN} | own


def assert_chosen(found: dict[str, str], expected: dict[str, str] | None) -> None:
    """None: one of our own choices, whatever runs on this machine now."""
    assert found == expected if expected else found in ({"GOMP_SPINCOUNT": ALONE}, {"GOMP_SPINCOUNT": BESIDE})


def at_torch(*command: str, own: Mapping[str, str], **options: Any) -> dict[str, str]:
    """What a program, given as a module and arguments, sees when it imports torch."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *command], env=environment(**own), capture_output=True, text=True, check=False,
        timeout=60, **options,
    )  # fmt: skip
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    return {name: value for name, value in found.items() if value is not None}


CHOICES: list[tuple[dict[str, str], dict[str, str] | None]] = [
    ({}, None),
    ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
]


@pytest.mark.parametrize(("own", "expected"), CHOICES)
def test_commands_choose_before_they_load_torch(
    tmp_path: Path, own: dict[str, str], expected: dict[str, str] | None
) -> None:
    file = tmp_path / "run.yaml"
    data = run_data(tmp_path) | {"backbone": {"use": "sd3", "checkpoint": "x"}, "rewards": [{"use": "ocr"}]}
    data["prompts"] = {"train": {"use": "ocr"}, "heldout": {"use": "ocr"}}
    file.write_text(yaml.safe_dump(data))
    assert_chosen(at_torch("dgpo_cli", "train", str(file), own=own), expected)
    child = ("dgpo_cli.child", str(os.getpid()))
    assert_chosen(at_torch(*child, "train", str(file), own=own), expected)


@pytest.mark.parametrize(("own", "expected"), CHOICES[:2])
def test_workers_choose_before_they_load_torch(own: dict[str, str], expected: dict[str, str] | None) -> None:
    here, there = socket.socketpair()
    with here, there:
        orders = json.dumps({"settings": {}}).encode()
        Channel(here).send(orders, number=1, about="/load")
        arguments = (str(there.fileno()), str(os.getpid()))
        found = at_torch("dgpo_remote.worker.worker_main", *arguments, own=own, pass_fds=[there.fileno()])
    assert_chosen(found, expected)


def test_a_worker_that_waits_its_own_way_does_not_inherit_the_run_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", ALONE)

    def variables(**own: str) -> dict[str, str]:
        spec = WorkerSpec("rewards.0", sys.executable, own, "x", {}, torch.device("cpu"), 1.0, 1.0)
        return {name: value for name, value in spec.variables.items() if name in KNOWN}

    assert variables() == {"GOMP_SPINCOUNT": ALONE}
    assert variables(OMP_WAIT_POLICY="ACTIVE") == {"OMP_WAIT_POLICY": "ACTIVE"}


def test_nothing_is_said_to_a_torch_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("loads", "busy"),
    [
        (["0.00 0.00 0.00 2/90 7"] * 5, True),
        (["9.00 9.00 9.00 1/90 7"], False),  # something ran a minute ago
        (["0.10 0.00 0.00 3/90 7", "0.10 0.00 0.00 1/90 7"], False),  # for a moment
        (["not Linux"], False),
        ([None], False),
    ],
)
def test_who_else_is_at_work(
    loads: list[str | None], busy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "loadavg"
    monkeypatch.setattr(openmp, "LOAD", file)
    states = iter(loads)

    def next_state(seconds: float) -> None:
        state = next(states)
        if state is not None:
            file.write_text(state)

    monkeypatch.setattr(openmp.time, "sleep", next_state)
    assert others_at_work() is busy
    assert next(states, None) is None
