"""From samples to results: read one after the other, scored in batches of one shape, returned in their order.

No more is held in memory than batches that wait to be full, so that a directory may hold any number of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dgpo_core.kinds import Kind, one_of, plural
from dgpo_core.media import MediaError, Medium
from dgpo_core.scoring import Reward, checked_score
from dgpo_core.surroundings import Guard
from dgpo_core.types import Prompt

__all__ = ["Result", "Sample", "score_samples"]

MOST_WAITING = 2**28
"""Numbers (1 GiB as float32) that may wait for their batch to be full: files of all different sizes never fill one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Something to score: `load` raises MediaError if it cannot be read."""

    name: str
    prompt: Prompt
    load: Callable[[], Medium]


@dataclass(frozen=True, slots=True)
class Result:
    """A sample's value, None if it is missing; why, and more, stands in the diagnostics."""

    name: str
    prompt: Prompt
    value: float | None
    diagnostics: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """Why it is missing, in a line."""
        return " ".join(str(self.diagnostics.get("reason") or "the reward gives no reason").split())


Done = Callable[[int, Result, Tensor | None], None]
"""Told of each result as it comes: index, result, media (None if they could not be read)."""


def score_samples(
    reward: Reward,
    samples: Sequence[Sample],
    *,
    batch: int,
    device: torch.device,
    done: Done = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """One result per sample, in their order. `note` is told what reading has changed in a file."""
    scoring = _Scoring(reward, samples, device, done)
    for index, sample in enumerate(samples):
        try:
            medium = sample.load()
        except MediaError as error:
            scoring.missing(index, error.reason, None)
            continue
        for text in medium.notes:
            note(f"{sample.name}: {text}")
        scoring.add(index, medium.tensor, batch)
    scoring.finish()
    return [scoring.results[index] for index in range(len(samples))]


@dataclass
class _Scoring:
    """Batches that fill up, one per shape."""

    reward: Reward
    samples: Sequence[Sample]
    device: torch.device
    done: Done
    results: dict[int, Result] = field(default_factory=dict)
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = field(default_factory=dict)
    held: int = 0
    failures: list[str] = field(default_factory=list)
    guard: Guard = field(default_factory=Guard)

    def add(self, index: int, media: Tensor, batch: int) -> None:
        kind: Kind = "image" if media.dim() == 3 else "video"
        takes = self.reward.model.media
        if kind not in takes:
            self.missing(index, f"is {one_of(kind)}; the reward takes {plural(takes)}", media)
            return
        shape = tuple(media.shape)
        self.waiting.setdefault(shape, []).append((index, media))
        self.held += media.numel()
        if len(self.waiting[shape]) == batch:
            self._score(shape)
        while self.held > MOST_WAITING:
            self._score(next(iter(self.waiting)))

    def finish(self) -> None:
        while self.waiting:
            self._score(next(iter(self.waiting)))

    def missing(self, index: int, reason: str, media: Tensor | None) -> None:
        self._keep(index, None, {"reason": reason}, media)

    def _score(self, shape: tuple[int, ...]) -> None:
        members = self.waiting.pop(shape)
        self.held -= sum(one.numel() for _, one in members)
        prompts = [self.samples[index].prompt for index, _ in members]
        media = torch.stack([one for _, one in members]).to(self.device)
        scores = checked_score(self.reward, media, prompts, self.failures, self.guard)
        for (index, one), value, missing, diagnostics in zip(
            members, scores.values.tolist(), scores.missing.tolist(), scores.diagnostics, strict=True
        ):
            self._keep(index, None if missing else value, diagnostics, one)

    def _keep(self, index: int, value: float | None, diagnostics: Mapping[str, Any], media: Tensor | None) -> None:
        sample = self.samples[index]
        self.results[index] = Result(sample.name, sample.prompt, value, diagnostics)
        self.done(index, self.results[index], media)
