"""A reward that waits for the GPU twenty times a micro-batch: on the stream of the rollouts, and on its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.parts import registry_with_components
from benchmarks.session.cases import CASES, configuration
from benchmarks.session.steps import Row, Session
from benchmarks.session.training import Watch, tiny_checkpoint
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_schemas.metrics import MetricsRecord, TimingRecord

__all__ = ["streams"]

MICRO_BATCHES = 4


class _Waiting(Callback):
    """Seconds of roll-out and of the wait for scores, of every iteration but the first."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        """Add an iteration's."""
        self.seconds.append(sum(timing.phases[p].seconds for p in ("rollout", "wait_for_scores") if p in timing.phases))


def streams(session: Session) -> list[Row]:
    """Seconds until all samples are drawn and scored: without a reward that waits, with one on either stream."""
    alone, own = _drawn(session, "free"), _drawn(session, "waiting")
    with _on_the_default_stream(session):
        shared = _drawn(session, "waiting", "shared")
    return [
        Row("drawn and scored, a reward that waits for nothing", alone, "s"),
        Row("20 waits a micro-batch, on a stream of its own", own, "s", ideal=alone),
        Row("20 waits a micro-batch, on the stream of the rollouts", shared, "s"),
    ]


def _drawn(session: Session, reward: str, name: str = "own") -> float:
    case = CASES["sd3.5-m 512"]
    tiny = tiny_checkpoint(session.directory) if session.tiny else None
    members = 4 if session.tiny else 16
    more: dict[str, Any] = {
        "run": {"name": f"rewards-{reward}-{name}"},
        "rollout": {"group_size": members, "micro_batch": members // MICRO_BATCHES},
        "optimizer": {"micro_batch": members // MICRO_BATCHES},
        "rewards": [{"use": reward}],
    }
    config = configuration(case, session.directory, iterations=2, tiny=tiny, more=more)
    waiting = _Waiting()
    Trainer(config, registry_with_components(), callbacks=[waiting, Watch()]).train()
    return waiting.seconds[-1]


@contextmanager
def _on_the_default_stream(session: Session) -> Iterator[None]:
    """Let rewards use the stream of the rollouts, as they did before each of their threads had its own."""
    from dgpo_core.training import handover

    if not session.cuda:
        yield
        return
    with patch.object(handover, "_stream_of_thread", torch.cuda.default_stream):
        yield
