"""A worker for all who need not be the first to harm it: for tests of workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dgpo_remote.worker.workers as workers
from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt, Scores
from dgpo_remote.worker.workers import WorkerReward

Make = Callable[..., RewardModel]


Samples = Callable[..., tuple[Tensor, list[Prompt]]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="module")
def moody(make: Make) -> RewardModel:
    """One worker for all who need not be the first to harm it."""
    return make("moody", worker={"retries": 1})


@pytest.fixture(scope="module")
def here(make: Make) -> RewardModel:
    """The same reward in this process."""
    return make("moody")


def pid_of(reward: RewardModel) -> int:
    assert isinstance(reward, WorkerReward)
    process = reward._servers.all[0].end.process
    assert process is not None
    return process.pid


def assert_same(one: Scores, other: Scores) -> None:
    assert one.values.dtype == other.values.dtype
    assert one.values.view(torch.int32).tolist() == other.values.view(torch.int32).tolist()
    assert one.missing.tolist() == other.missing.tolist()
    assert list(one.diagnostics) == list(other.diagnostics)
