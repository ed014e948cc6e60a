"""What every check is made of: assertions that carry the promise they are about."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dgpo_core.plugins.process_state import changes, process_snapshot, put_back, thread_snapshot

__all__ = ["close", "equal", "global_state_left_alone", "normal", "process_left_alone", "that"]


def that(condition: object, promise: str) -> None:
    """Raise AssertionError with the promise if it is broken."""
    if not condition:
        raise AssertionError(promise)


def equal(found: Tensor, expected: Tensor, promise: str) -> None:
    """Bit for bit, nan included."""
    close(found, expected, promise, 0.0)


def close(found: Tensor, expected: Tensor, promise: str, tolerance: float) -> None:
    """Up to `tolerance`, absolute and relative; shape and dtype must agree."""
    torch.testing.assert_close(
        found, expected, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda why: f"{promise}: {why}"
    )


@contextlib.contextmanager
def global_state_left_alone(what: str) -> Iterator[None]:
    """Every draw comes from a key: a component that touches a global generator makes runs differ after a resume."""

    def states() -> list[bytes]:
        numpy = json.dumps(np.random.get_state(legacy=False), default=np.ndarray.tolist).encode()
        return [torch.get_rng_state().numpy().tobytes(), numpy, repr(random.getstate()).encode()]

    before = states()
    yield
    for name, one, other in zip(("torch", "numpy", "random"), before, states(), strict=True):
        that(one == other, f"{what} leaves the global random state of {name} alone")


@contextlib.contextmanager
def process_left_alone() -> Iterator[None]:
    """What a component shares with the run stays as it was: a changed working directory moves the run's files, a
    changed default of torch its last bits. What is changed is put back, so that other checks are not about it."""
    before = process_snapshot() | thread_snapshot()
    found: list[str] = []
    try:
        yield
    finally:
        found = changes(before, process_snapshot() | thread_snapshot())
        put_back(before, found)
    for name in found:
        that(False, f"whatever is asked of it leaves {name} alone")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32, the same every time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
