"""The verb *score*: media to rewards, on a thread of their own, while the next samples are drawn."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_core.groups import mean_pairwise_distance
from dgpo_core.types import Prompt, Rollout, ScoredGroups, Scores

if TYPE_CHECKING:
    from dgpo_core.contracts import RewardModel

__all__ = ["Reward", "ScoredSamples", "Scorer"]

log = logging.getLogger(__name__)
THUMBNAIL = 32
"""Side in pixels to which media are averaged before the diversity of a group is measured."""
PATIENCE = 1.0
"""Seconds that closing gives to a reward which is at work; one that takes longer is left behind."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward model under the label of the run file, with its weight."""

    label: str
    weight: float
    model: RewardModel


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Scores of N samples in flat order: per label float64 [N] (nan where missing), diagnostics, thumbnails [N, D]."""

    values: Mapping[str, Tensor]
    diagnostics: Mapping[str, Sequence[Mapping[str, Any]]]
    thumbnails: Tensor
    seconds: float


@dataclass
class Scorer:
    """Submits micro-batches to the rewards one after the other and collects them in order.

    A reward that raises, or returns something that is not one number per sample, leaves its micro-batch missing, with
    the reason in the log and in `failures`; it never becomes 0. Nor does a sample whose media are not finite.
    """

    rewards: Sequence[Reward]
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._worker = _Worker()
        self._pending: list[Future[tuple[dict[str, Scores], float]]] = []
        self._thumbnails: list[Tensor] = []

    def submit(self, media: Tensor, prompts: Sequence[Prompt]) -> None:
        """Queue media [B, 3, H, W] or [B, F, 3, H, W] with the prompt of each sample."""
        self._thumbnails.append(_thumbnails(media))
        self._pending.append(self._worker.submit(partial(self._score, media, tuple(prompts))))

    def collect(self) -> ScoredSamples:
        """Wait for everything that was submitted since the last call."""
        done = [future.result() for future in self._pending]
        thumbnails = torch.cat(self._thumbnails)
        self._pending.clear()
        self._thumbnails.clear()
        values, diagnostics = {}, {}
        for reward in self.rewards:
            parts = [scores[reward.label] for scores, _ in done]
            values[reward.label] = torch.cat([p.values.double().masked_fill(p.missing, torch.nan) for p in parts])
            diagnostics[reward.label] = tuple(d for p in parts for d in p.diagnostics)
        return ScoredSamples(values, diagnostics, thumbnails, sum(seconds for _, seconds in done))

    def discard(self) -> None:
        """Drop what was submitted (the iteration was abandoned), without waiting for the reward at work."""
        for future in self._pending:
            future.cancel()
        self._pending.clear()
        self._thumbnails.clear()

    def close(self) -> None:
        """Stop the thread."""
        self.discard()
        self._worker.close()

    def _score(self, media: Tensor, prompts: tuple[Prompt, ...]) -> tuple[dict[str, Scores], float]:
        started = time.perf_counter()
        broken = ~media.flatten(1).isfinite().all(1).cpu()
        scores = {r.label: self._one(r, media, prompts, broken) for r in self.rewards}
        return scores, time.perf_counter() - started

    def _one(self, reward: Reward, media: Tensor, prompts: tuple[Prompt, ...], broken: Tensor) -> Scores:
        count = len(prompts)
        try:
            with torch.no_grad():
                scores = reward.model.score(media, prompts)
            if scores.values.shape != (count,) or scores.missing.shape != (count,):
                raise ValueError(
                    f"returned values {tuple(scores.values.shape)} and missing {tuple(scores.missing.shape)} "
                    f"for {count} samples"
                )
            if scores.missing.dtype != torch.bool:
                raise ValueError(f"returned a missing mask of {scores.missing.dtype}, not torch.bool")
            if scores.diagnostics and len(scores.diagnostics) != count:
                raise ValueError(f"returned {len(scores.diagnostics)} diagnostics for {count} samples")
            values = scores.values.detach().cpu()
            missing = scores.missing.cpu() | ~values.isfinite() | broken
            return Scores(values, missing, scores.diagnostics or ({},) * count)
        except (Exception, SystemExit) as error:  # some libraries exit where others raise
            reason = f"{reward.label}: {type(error).__name__}: {error}"
            if reason not in self.failures:
                log.warning("reward failed, %d samples are missing: %s", count, reason, exc_info=True)
                self.failures.append(reason)
            return Scores(torch.zeros(count), torch.ones(count, dtype=torch.bool), ({"reason": str(error)},) * count)

    def total(self, samples: ScoredSamples) -> Tensor:
        """The weighted sum of all rewards, float64 [N]; nan where one that counts is missing."""
        return torch.stack([r.weight * samples.values[r.label] for r in self.rewards if r.weight]).sum(0)

    def groups(self, samples: ScoredSamples, rollouts: Sequence[Rollout], prompts: Sequence[Prompt]) -> ScoredGroups:
        """Flat samples as groups [g, G]."""
        shape = (len(prompts), -1)
        total = self.total(samples).view(shape)
        x0 = torch.cat([r.x0 for r in rollouts])
        return ScoredGroups(
            prompts=tuple(prompts),
            x0=x0.view(len(prompts), total.shape[1], *x0.shape[1:]),
            rewards=total.nan_to_num(0.0),
            scored=~total.isnan(),
            per_reward={label: v.view(shape) for label, v in samples.values.items()},
            diversity=mean_pairwise_distance(samples.thumbnails.view(*total.shape, -1)).cpu(),
            paths=tuple(r.path for r in rollouts if r.path is not None),
        )


def _thumbnails(media: Tensor) -> Tensor:
    """Media [B, (F,) 3, H, W] averaged to small pictures, [B, D]."""
    frames = (media.flatten(0, 1) if media.dim() == 5 else media).nan_to_num(0.0, 0.0, 0.0)
    if max(frames.shape[-2:]) > THUMBNAIL:
        frames = F.adaptive_avg_pool2d(frames, THUMBNAIL)
    return frames.reshape(len(media), -1)


class _Worker:
    """One thread that makes calls in order. Unlike an executor's, it keeps no process alive whose reward hangs."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="reward", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call; the future has what it returns or raises."""
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def close(self) -> None:
        """End the thread once it has made every call."""
        self._calls.put(None)
        self._thread.join(PATIENCE)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call  # media must not outlive their scores
