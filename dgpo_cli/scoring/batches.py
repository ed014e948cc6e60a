"""From samples to results: read one after the other, scored in batches of one shape, returned in their order.

No more is held in memory than batches that wait to be full, so that a directory may hold any number of files.
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dgpo_cli.scoring.files import MediaError, Medium
from dgpo_core.distributed.comparing import OTHER_SIZES, by_prompt
from dgpo_core.errors import UserError
from dgpo_core.media.kinds import Kind, one_of, plural
from dgpo_core.plugins.surroundings import Guard
from dgpo_core.training.reward_calls import Reward, checked_group, checked_score
from dgpo_core.types import Prompt, Scores
from dgpo_schemas.service import LONGEST_PART
from dgpo_schemas.text import clean, lone_surrogate

__all__ = ["Result", "Sample", "score_samples"]

MOST_WAITING = 2**28
"""Numbers (1 GiB as float32) that may wait for their batch to be full: files of all different sizes never fill one."""


SHOWN = 60
"""Characters of a prompt in a message."""


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
    """One result per sample, in their order. `note` is told what reading has changed in a file.

    A reward that compares is shown the samples of a prompt together. Raises UserError for one that is alone with its
    prompt.
    """
    scoring = _Scoring(reward, samples, device, done)

    def read(index: int) -> Tensor | None:
        try:
            medium = samples[index].load()
        except MediaError as error:
            scoring.missing(index, error.reason, None)
            return None
        for text in medium.notes:
            note(f"{samples[index].name}: {text}")
        return medium.tensor if scoring.takes(index, medium.tensor) else None

    if reward.compares:
        for group in groups_of(reward, samples):
            scoring.compare([(index, media) for index in group if (media := read(index)) is not None])
    else:
        for index in range(len(samples)):
            if (media := read(index)) is not None:
                scoring.add(index, media, batch)
        scoring.finish()
    return [scoring.results[index] for index in range(len(samples))]


def groups_of(reward: Reward, samples: Sequence[Sample]) -> list[list[int]]:
    """The numbers of the samples of each prompt. Raises UserError for a prompt of which there is one."""
    groups = by_prompt([sample.prompt for sample in samples])
    for group in groups:
        if len(group) < 2:
            alone = samples[group[0]]
            shown = textwrap.shorten(clean(alone.prompt.text), SHOWN, placeholder=" ...")
            raise UserError(
                f"{alone.name}: {reward.label} compares the files of one prompt with each other, and no "
                f"other file has the prompt {shown!r}; give it at least two"
            )
    return groups


def _named(name: str) -> str:
    """A file's name as a part of a key, which is a text of few characters."""
    if len(name) <= LONGEST_PART and lone_surrogate(name) is None:
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


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

    def takes(self, index: int, media: Tensor) -> bool:
        """Whether the reward scores such media; the sample is missing if it does not."""
        kind: Kind = "image" if media.dim() == 3 else "video"
        takes = self.reward.model.media
        if kind not in takes:
            self.missing(index, f"is {one_of(kind)}; the reward takes {plural(takes)}", media)
        return kind in takes

    def compare(self, members: Sequence[tuple[int, Tensor]]) -> None:
        """Score a group, whose members are named by their files."""
        if len({one.shape for _, one in members}) > 1:
            for index, one in members:
                self.missing(index, OTHER_SIZES, one)
            return
        if not members:
            return
        names = [_named(self.samples[index].name) for index, _ in members]
        keys = [(name, names[:i].count(name)) for i, name in enumerate(names)]
        media = torch.stack([one for _, one in members]).to(self.device)
        prompt = self.samples[members[0][0]].prompt
        self._keep_all(members, checked_group(self.reward, media, prompt, keys, self.failures, self.guard))

    def add(self, index: int, media: Tensor, batch: int) -> None:
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
        self._keep_all(members, checked_score(self.reward, media, prompts, self.failures, self.guard))

    def _keep_all(self, members: Sequence[tuple[int, Tensor]], scores: Scores) -> None:
        for (index, one), value, missing, diagnostics in zip(
            members, scores.values.tolist(), scores.missing.tolist(), scores.diagnostics, strict=True
        ):
            self._keep(index, None if missing else value, diagnostics, one)

    def _keep(self, index: int, value: float | None, diagnostics: Mapping[str, Any], media: Tensor | None) -> None:
        sample = self.samples[index]
        self.results[index] = Result(sample.name, sample.prompt, value, diagnostics)
        self.done(index, self.results[index], media)
