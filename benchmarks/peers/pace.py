"""Iterations one at a time: a loop that waits for its turn before each iteration, and says what the last one took."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

__all__ = ["Enough", "Iteration", "Pace"]


class Enough(BaseException):
    """The other end wants no more iterations. No `Exception`, so that no loop takes it for a failure of its own."""


@dataclass
class Iteration:
    """What an iteration took. seconds: of the CPU, all threads of the process together, or by CUDA events; rollout: of
    them before the first training pass; passes: calls of the network by kind ("rollout", "fixed", "gradient"); rows:
    likewise its samples, those for guidance included; inputs: kinds of its inputs (dtype, latents, text tokens);
    weights: dtypes of its parameters, and the number of those that are trained."""

    seconds: float = 0.0
    rollout: float = 0.0
    passes: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    inputs: set[str] = field(default_factory=set)
    weights: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON data."""
        return {**vars(self), "passes": dict(self.passes), "rows": dict(self.rows), "inputs": sorted(self.inputs)}


class Pace:
    """Called by a loop: `iteration` where each of its iterations starts. Between that call's return and the next call
    lies what is measured; the wait for a turn is not."""

    def __init__(self, connection: Connection, device: torch.device | None = None) -> None:
        self._connection = connection
        self._cuda = device is not None and device.type == "cuda"
        self._current: Iteration | None = None
        self._started: Any = None

    def iteration(self) -> None:
        """End the last iteration and report it; wait for a turn. Raises Enough if there is to be no other."""
        if self._current is None:
            self._connection.send({"ready": True})
        else:
            self._current.seconds = self._elapsed()
            self._connection.send(self._current.plain())
        if self._connection.recv() != "go":
            raise Enough
        self._current = Iteration()
        self._started = self._now()

    def watch(self, network: torch.nn.Module) -> None:
        """Count the network's passes. Those in training mode belong to the optimization."""
        network.register_forward_pre_hook(self._before, with_kwargs=True)

    def optimizing(self) -> None:
        """The rollout of this iteration is over."""
        if self._current is not None and not self._current.rollout:
            self._current.rollout = self._elapsed()

    def _before(self, network: torch.nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        current = self._current
        if current is None:
            return
        if network.training:
            self.optimizing()
        kind: Literal["rollout", "fixed", "gradient"] = "rollout"
        if current.rollout:
            kind = "gradient" if torch.is_grad_enabled() else "fixed"
        x, text = keywords["hidden_states"], keywords["encoder_hidden_states"]
        current.passes[kind] += 1
        current.rows[kind] += len(x)
        shape = "x".join(map(str, x.shape[1:]))
        if kind == "gradient" and not current.weights:
            current.weights = _weights(network)
        current.inputs.add(f"{x.dtype} {shape}, {text.shape[1]} text tokens".removeprefix("torch."))

    def _now(self) -> Any:
        if not self._cuda:
            return time.process_time()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _elapsed(self) -> float:
        now = self._now()
        if not self._cuda:
            return float(now - self._started)
        now.synchronize()
        return float(self._started.elapsed_time(now)) / 1e3


def _weights(network: torch.nn.Module) -> str:
    dtypes = {str(p.dtype).removeprefix("torch.") for p in network.parameters()}
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return f"{', '.join(sorted(dtypes))}, {trained:,} trained"


def fail(connection: Connection, reason: str) -> None:
    """Report that the loop cannot go on."""
    with suppress(OSError):  # the other end may have gone
        connection.send({"failed": reason})
