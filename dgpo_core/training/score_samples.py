"""From samples to results: read one after the other, scored in batches of one shape, returned in their order.

No more is held in memory than batches that wait to be full, so that a directory may hold any number of files.
"""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic_core import to_json
from torch import Tensor

from dgpo_core.distributed.comparing import OTHER_SIZES, by_prompt
from dgpo_core.distributed.processes import Processes, cut
from dgpo_core.errors import UserError
from dgpo_core.media.files import MediaError, Medium
from dgpo_core.media.kinds import Kind, one_of, plural
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.training.reward_calls import Reward, checked_group, checked_score
from dgpo_core.types import Prompt, Scores
from dgpo_schemas.service import LONGEST_PART
from dgpo_schemas.text import clean, lone_surrogate

__all__ = ["Result", "Sample", "Scored", "score_samples"]

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Scored:
    """A result for each sample, in their order, and notes on what reading has changed in files."""

    results: list[Result]
    notes: list[str]


def score_samples(
    reward: Reward,
    samples: Sequence[Sample],
    *,
    batch: int,
    device: torch.device,
    processes: Processes | None = None,
    done: Callable[[], object] = lambda: None,
) -> Scored:
    """Score samples in batches of one shape; `done` is called after each of this process's.

    A reward that compares is shown the samples of a prompt together. Raises UserError for one that is alone with its
    prompt. processes: those that share the work, in the batches of a single process; to them the shapes have to be
    known beforehand, for which every file is read once more. Each of them returns everything.
    """
    processes = processes or Processes()
    scoring = _Scoring(reward, samples, device, done)
    if reward.compares:
        groups = groups_of(reward, samples)
        for group in _part(groups, processes):
            scoring.compare(list(scoring.read(group)))
    elif processes.count == 1:
        for members in in_batches(scoring.read(range(len(samples))), batch):
            scoring.score(members)
    else:
        read = [[i, *media.shape] for i, media in scoring.read(_part(range(len(samples)), processes))]
        shapes = sorted(one for part in processes.all_gather_object(read) for one in part)
        blank = ((i, torch.empty(shape, device="meta")) for i, *shape in shapes)
        plan = [[i for i, _ in members] for members in in_batches(blank, batch)]
        for numbers in _part(plan, processes):
            scoring.score(list(scoring.read(numbers)))
    return scoring.gathered(processes)


def _part(units: Sequence[T], processes: Processes) -> Sequence[T]:
    """This process's part of the work."""
    part = cut(len(units), processes.rank, processes.count)
    return units[part.start : part.stop]


def in_batches(media: Iterable[tuple[int, Tensor]], batch: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Batches of one shape, as soon as they are full, or when more than MOST_WAITING numbers wait for others."""
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for index, one in media:
        shape = tuple(one.shape)
        waiting.setdefault(shape, []).append((index, one))
        if len(waiting[shape]) == batch:
            yield waiting.pop(shape)
        while sum(m.numel() for members in waiting.values() for _, m in members) > MOST_WAITING:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


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
    """Reads and scores, and keeps what comes of it by the samples' numbers."""

    reward: Reward
    samples: Sequence[Sample]
    device: torch.device
    done: Callable[[], object]
    results: dict[int, Result] = field(default_factory=dict)
    notes: dict[int, Sequence[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    process_state: ProcessState = field(default_factory=ProcessState)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """The media of samples; those that cannot be read, or that the reward does not take, are missing."""
        takes = self.reward.model.media
        for index in numbers:
            try:
                medium = self.samples[index].load()
            except MediaError as error:
                self._keep(index, None, {"reason": error.reason})
                continue
            self.notes[index] = medium.notes
            kind: Kind = "image" if medium.tensor.dim() == 3 else "video"
            if kind in takes:
                yield index, medium.tensor
            else:
                self._keep(index, None, {"reason": f"is {one_of(kind)}; the reward takes {plural(takes)}"})

    def compare(self, members: Sequence[tuple[int, Tensor]]) -> None:
        """Score a group, whose members are named by their files."""
        if len({one.shape for _, one in members}) > 1:
            for index, _ in members:
                self._keep(index, None, {"reason": OTHER_SIZES})
            return
        if not members:
            return
        names = [_named(self.samples[index].name) for index, _ in members]
        keys = [(name, names[:i].count(name)) for i, name in enumerate(names)]
        media = torch.stack([one for _, one in members]).to(self.device)
        prompt = self.samples[members[0][0]].prompt
        self._keep_all(members, checked_group(self.reward, media, prompt, keys, self.failures, self.process_state))

    def score(self, members: Sequence[tuple[int, Tensor]]) -> None:
        """Score a batch."""
        if members:
            prompts = [self.samples[index].prompt for index, _ in members]
            media = torch.stack([one for _, one in members]).to(self.device)
            self._keep_all(members, checked_score(self.reward, media, prompts, self.failures, self.process_state))

    def gathered(self, processes: Processes) -> Scored:
        """What all processes have found."""
        if processes.count > 1:
            mine = {i: [r.value, dict(r.diagnostics)] for i, r in self.results.items()}
            sent = json.loads(to_json([mine, self.notes], inf_nan_mode="constants", fallback=str))
            for results, notes in processes.all_gather_object(sent):
                for index, found in ((int(i), found) for i, found in results.items()):
                    sample = self.samples[index]
                    self.results[index] = Result(sample.name, sample.prompt, *found)
                self.notes |= {int(i): texts for i, texts in notes.items()}
        notes = [f"{self.samples[i].name}: {text}" for i in sorted(self.notes) for text in self.notes[i]]
        return Scored([self.results[index] for index in range(len(self.samples))], notes)

    def _keep_all(self, members: Sequence[tuple[int, Tensor]], scores: Scores) -> None:
        for (index, _), value, missing, diagnostics in zip(
            members, scores.values.tolist(), scores.missing.tolist(), scores.diagnostics, strict=True
        ):
            self._keep(index, None if missing else value, diagnostics)

    def _keep(self, index: int, value: float | None, diagnostics: Mapping[str, Any]) -> None:
        sample = self.samples[index]
        self.results[index] = Result(sample.name, sample.prompt, value, diagnostics)
        self.done()
