"""Read samples one by one, score them in batches of equal shape, and return the results in the order of the samples.

Only batches that are not yet full are held in memory, so a directory may contain any number of files.
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
"""Maximum numbers (1 GiB as float32) held in incomplete batches, because files of different sizes never fill one."""

SHOWN = 60
"""Maximum characters of a prompt in a message."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample to score; `load` raises MediaError if it cannot be read."""

    name: str
    prompt: Prompt
    load: Callable[[], Medium]


@dataclass(frozen=True, slots=True)
class Result:
    """The value of a sample, or None if it could not be scored, with the reward's diagnostics and reason."""

    name: str
    prompt: Prompt
    value: float | None
    diagnostics: Mapping[str, Any]

    @property
    def reason(self) -> str:
        """Why the value is missing, on one line."""
        return " ".join(str(self.diagnostics.get("reason") or "the reward returned no reason").split())


@dataclass(frozen=True, slots=True)
class Scored:
    """One result per sample, in the order of the samples, and notes on conversions made while reading files."""

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
    """Score samples in batches of equal shape; `done` is called after each sample of this rank.

    A reward that compares samples gets all samples of a prompt together. With several `processes`, the batches are the
    same as with one process and are split over the ranks; this requires reading every file twice, because the shapes
    must be known first. Every rank returns all results. Raises UserError if a comparing reward gets a prompt with a
    single sample.
    """
    processes = processes or Processes()
    scoring = _Scorer(reward, samples, device, done)
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
    """Yield batches of equal shape as soon as they are full, or when incomplete ones hold over MOST_WAITING numbers."""
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for index, medium in media:
        shape = tuple(medium.shape)
        waiting.setdefault(shape, []).append((index, medium))
        if len(waiting[shape]) == batch:
            yield waiting.pop(shape)
        while sum(m.numel() for members in waiting.values() for _, m in members) > MOST_WAITING:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def groups_of(reward: Reward, samples: Sequence[Sample]) -> list[list[int]]:
    """Return the sample indices of each prompt. Raises UserError for a prompt with a single sample."""
    groups = by_prompt([sample.prompt for sample in samples])
    for group in groups:
        if len(group) < 2:
            alone = samples[group[0]]
            shown = textwrap.shorten(clean(alone.prompt.text), SHOWN, placeholder=" ...")
            raise UserError(
                f"{alone.name}: {reward.label} compares the files of the same prompt, but no other file has the "
                f"prompt {shown!r}; give at least two files per prompt"
            )
    return groups


def _named(name: str) -> str:
    """Return a file name as a component of a sample key; long or undecodable names are replaced by their SHA-256."""
    if len(name) <= LONGEST_PART and lone_surrogate(name) is None:
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass
class _Scorer:
    """Reads and scores samples, and collects the results by sample index."""

    reward: Reward
    samples: Sequence[Sample]
    device: torch.device
    done: Callable[[], object]
    results: dict[int, Result] = field(default_factory=dict)
    notes: dict[int, Sequence[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    process_state: ProcessState = field(default_factory=ProcessState)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Yield the media of samples; unreadable files and unsupported kinds become missing results."""
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
                self._keep(index, None, {"reason": f"is {one_of(kind)}; the reward accepts {plural(takes)}"})

    def compare(self, members: Sequence[tuple[int, Tensor]]) -> None:
        """Score the samples of one prompt as a group; their keys are the file names."""
        if len({medium.shape for _, medium in members}) > 1:
            for index, _ in members:
                self._keep(index, None, {"reason": OTHER_SIZES})
            return
        if not members:
            return
        names = [_named(self.samples[index].name) for index, _ in members]
        keys = [(name, names[:i].count(name)) for i, name in enumerate(names)]
        media = torch.stack([medium for _, medium in members]).to(self.device)
        prompt = self.samples[members[0][0]].prompt
        self._keep_all(members, checked_group(self.reward, media, prompt, keys, self.failures, self.process_state))

    def score(self, members: Sequence[tuple[int, Tensor]]) -> None:
        """Score a batch."""
        if members:
            prompts = [self.samples[index].prompt for index, _ in members]
            media = torch.stack([medium for _, medium in members]).to(self.device)
            self._keep_all(members, checked_score(self.reward, media, prompts, self.failures, self.process_state))

    def gathered(self, processes: Processes) -> Scored:
        """Gather the results and notes of all ranks."""
        if processes.count > 1:
            local = {i: [r.value, dict(r.diagnostics)] for i, r in self.results.items()}
            message = json.loads(to_json([local, self.notes], inf_nan_mode="constants", fallback=str))
            for results, notes in processes.all_gather_object(message):
                for index, result in ((int(i), result) for i, result in results.items()):
                    sample = self.samples[index]
                    self.results[index] = Result(sample.name, sample.prompt, *result)
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
