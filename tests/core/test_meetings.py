"""Ranks with GPUs meet on the host before their GPUs do, because NCCL does not raise if one of them is gone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dgpo_core.distributed.processes import Processes
from dgpo_core.errors import ProcessLostError

HOST = "the host's group"


class Group:
    """Rank 0 of two, with a log of what is asked of torch; `lost`: the other rank is gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: str = "cuda") -> None:
        self.log: list[str] = []
        self.lost = False
        self.out_of_memory = False
        self.processes = Processes(0, 2)
        self.processes._host = HOST  # type: ignore[assignment]
        self.processes._device = None if device == "cpu" else torch.device("cuda", 0)
        monkeypatch.setattr(dist, "all_reduce", self._reduce)
        monkeypatch.setattr(dist, "all_gather", self._gather)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.log.append(f"finish the work on {device}"))

    def _reduce(self, tensor: Tensor, operation: Any = None, group: Any = None) -> None:
        self.log.append("meet" if group == HOST else "reduce")
        if self.lost and group == HOST:
            raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5123")
        if self.out_of_memory and group != HOST:
            raise RuntimeError("NCCL error: unhandled cuda error. Last error:\nCuda failure 2 'out of memory'")

    def _gather(self, parts: list[Tensor], tensor: Tensor, group: Any = None) -> None:
        self.log.append("exchange" if group == HOST else "gather")
        for part in parts:
            part.copy_(tensor)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(monkeypatch)


def test_they_meet_when_their_own_work_is_done_and_then_reduce(group: Group) -> None:
    group.processes.all_reduce_sum([torch.ones(2), torch.ones(3)])
    assert group.log == ["finish the work on cuda:0", "meet", "reduce"]


def test_with_a_sharded_model_they_also_meet_before_they_wait_for_their_own_work(group: Group) -> None:
    """Queued gathers of a lost rank's weights would never end."""
    group.processes.gathers = True
    group.processes.all_reduce_sum([torch.ones(2)])
    assert group.log == ["meet", "finish the work on cuda:0", "meet", "reduce"]
    group.log.clear()
    group.lost = True
    with pytest.raises(ProcessLostError):
        group.processes.all_reduce_sum([torch.ones(2)])
    assert group.log == ["meet"]


def test_ranks_meet_before_they_make_a_group_for_messages(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make one with a lost rank would take as long as to wait for a message from it."""
    monkeypatch.setattr(dist, "new_group", lambda **_: group.log.append("make a group"))
    group.lost = True
    with pytest.raises(ProcessLostError):
        _ = group.processes.channel
    assert group.log == ["meet"]
    group.lost = False
    _ = group.processes.channel
    assert group.log == ["meet", "meet", "make a group"]


def test_they_meet_on_the_way_into_a_sharded_pass(group: Group) -> None:
    with group.processes.exchanging():
        assert group.log == ["meet"]  # work stays queued


def test_on_the_cpu_one_meeting_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(monkeypatch, "cpu")
    group.processes.all_reduce_sum([torch.ones(2)])
    with group.processes.exchanging():
        pass
    group.processes.all_gather_tensors([torch.ones(2)])
    assert group.log == ["reduce", "exchange", "exchange", "exchange"]


@pytest.mark.parametrize("what", ["reduce", "pass"])
def test_a_lost_rank_is_reported_before_the_gpus_wait_for_it(what: str, group: Group) -> None:
    def enter() -> None:
        with group.processes.exchanging():
            pass

    group.lost = True
    act: Callable[[], Any] = enter if what == "pass" else lambda: group.processes.all_reduce_sum([torch.ones(2)])
    with pytest.raises(ProcessLostError, match="process 0 of 2 timed out waiting for another process: Connection"):
        act()
    assert group.processes.lost
    assert "reduce" not in group.log


def test_a_full_device_is_no_lost_rank(group: Group) -> None:
    group.out_of_memory = True
    with pytest.raises(RuntimeError, match="Cuda failure 2"):
        group.processes.all_reduce_sum([torch.ones(2)])
    with pytest.raises(RuntimeError, match="CUDA out of memory"), group.processes.exchanging():
        raise RuntimeError("NCCL: CUDA out of memory")
    assert not group.processes.lost


RANK = """
import os, sys, torch
import torch.distributed as dist
from dgpo_core.distributed.processes import Processes
from dgpo_core.errors import ProcessLostError
torch.cuda.synchronize = lambda device: None
processes = Processes.join(cpu=True, timeout=20.0)
processes._device = torch.device("cuda", 0)
ours, reduce = [], dist.all_reduce
def all_reduce(tensor, operation=dist.ReduceOp.SUM, group=None):
    if group is None:  # like NCCL, it would not raise
        ours.append(tensor.tolist())
    return reduce(tensor, operation, group=group)
dist.all_reduce = all_reduce
print(processes.all_reduce_sum([torch.tensor([1.0 + processes.rank])])[0].tolist(), flush=True)
if processes.rank == 1:
    os._exit(0)
try:
    processes.all_reduce_sum([torch.tensor([5.0])])
except ProcessLostError as error:
    print(error, len(ours), flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_of_which_one_ends() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    first, second = (rank.communicate(timeout=120)[0].splitlines() for rank in ranks)
    assert first[0] == second[0] == "[3.0]"
    assert first[1].startswith("process 0 of 2 timed out waiting for another process: ")
    assert first[1].endswith(" 1")  # the second reduction was not begun
