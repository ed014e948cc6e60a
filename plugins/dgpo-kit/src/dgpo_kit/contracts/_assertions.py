"""Assertions whose messages state the violated requirement."""

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


def that(condition: object, requirement: str) -> None:
    """Raise AssertionError with `requirement` as its message if the condition is false."""
    if not condition:
        raise AssertionError(requirement)


def equal(found: Tensor, expected: Tensor, requirement: str) -> None:
    """Raise AssertionError unless shape, dtype and all values are equal; nan equals nan."""
    close(found, expected, requirement, 0.0)


def close(found: Tensor, expected: Tensor, requirement: str, tolerance: float) -> None:
    """Raise AssertionError unless shape and dtype are equal and values agree to `tolerance`, absolute and relative."""
    torch.testing.assert_close(
        found, expected, atol=tolerance, rtol=tolerance, equal_nan=True, msg=lambda why: f"{requirement}: {why}"
    )


@contextlib.contextmanager
def global_state_left_alone(what: str) -> Iterator[None]:
    """Raise AssertionError if the block changes the global random state of torch, numpy or random.

    All random draws must come from keys; with a global generator, a resumed run would differ. what: the component as
    the subject of the message.
    """

    def states() -> list[bytes]:
        numpy = json.dumps(np.random.get_state(legacy=False), default=np.ndarray.tolist).encode()
        return [torch.get_rng_state().numpy().tobytes(), numpy, repr(random.getstate()).encode()]

    before = states()
    yield
    for name, state, after in zip(("torch", "numpy", "random"), before, states(), strict=True):
        that(state == after, f"{what} must not change the global random state of {name}")


@contextlib.contextmanager
def process_left_alone() -> Iterator[None]:
    """Raise AssertionError if the block changes process state, such as the working directory or torch's defaults.

    Changes are undone, so that they do not affect later checks.
    """
    before = process_snapshot() | thread_snapshot()
    found: list[str] = []
    try:
        yield
    finally:
        found = changes(before, process_snapshot() | thread_snapshot())
        put_back(before, found)
    for name in found:
        that(False, f"the component must not change {name}")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal float32 values, always the same for a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
