"""Checks of group rewards: values depend on the members of the group and their keys alone."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from dgpo_core.contracts import GroupReward
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_kit.contracts._assertions import that
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_kit.contracts._reward import (
    Batch,
    _batches,
    _check_scores,
    _close,
    _same_scores,
    _Subject,
    _without_error,
    check_examples,
    declares,
    determinism,
    diagnostics,
    prompts,
    random_state,
    scores,
    sizes,
    threads,
    untouched,
)

__all__ = ["check_group_reward", "group_reward_checks"]


def check_group_reward(reward: GroupReward, media: Tensor, prompt: Prompt) -> None:
    """Check that a reward returns one value or missing mark per member, from the members' media and keys alone, in any
    thread.

    media: [G, ...] of one prompt, in the format of the reward, at least three; include some that are hard to score.
    Raises AssertionError at the first violation.
    """
    batch = Batch("image" if media.dim() == 4 else "video", media, (prompt,) * len(media))
    run_all(_checks(lambda: _Group(reward, (batch,))))


def group_reward_checks(make: Callable[[], GroupReward], prompts: Sequence[Prompt] = ()) -> Iterator[Check]:
    """Yield the checks of a group reward on groups of generated media, one per prompt, and on its examples.

    The checks raise NeedsInput if there are neither examples nor `prompts` and the reward rejects generated prompts.
    """

    @cache
    def subject() -> _Group:
        reward = make()
        shown = _batches(reward, tuple(prompts))
        groups = [
            Batch(batch.medium, batch.media, (prompt,) * len(batch.prompts))
            for batch in shown
            for prompt in {id(prompt): prompt for prompt in batch.prompts}.values()
        ]
        return _Group(reward, tuple(groups))

    yield from _checks(subject)
    yield Check("close", lambda: _close(subject().reward, subject.cache_clear))


def _checks(subject: Callable[[], _Group]) -> Iterator[Check]:
    return checks_of(
        subject, declares, prompts, scores, untouched, determinism, permutation, other_groups, one_member, sizes,
        diagnostics, threads, random_state, examples,
    )  # fmt: skip


def keys_of(count: int) -> list[SampleKey]:
    """Return keys like those of the engine, not in the order of the members."""
    return [("iteration", 0, "rollout", 0, (7 * i) % 11) for i in range(count)]


@dataclass(frozen=True)
class _Group(_Subject):
    """A group reward; each batch is a group, samples of one prompt."""

    reward: GroupReward  # type: ignore[assignment]

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return self.compare(media, prompts[0], keys_of(len(media)))

    @torch.no_grad()
    def compare(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Call the reward as the engine does."""
        return self.reward.score_group(media, prompt, keys)


def permutation(s: _Group) -> None:
    """Values do not depend on the order of the members."""
    for batch in s.batches:
        keys, before = keys_of(len(batch.media)), s.answer(batch)
        for order in (list(range(len(keys)))[::-1], [*range(1, len(keys)), 0]):
            found = s.compare(batch.media[order].clone(), batch.prompts[0], [keys[i] for i in order])
            expected = Scores(before.values[order], before.missing[order])
            _same_scores(found, expected, "values must not depend on the order of the members", 1e-5)


def other_groups(s: _Group) -> None:
    """Values do not depend on groups scored before."""
    for batch in s.batches:
        before = s.answer(batch)
        s.score(batch.media.flip(0) * 0.5, [Prompt("another group", batch.prompts[0].metadata)])
        s.score(batch.media[:2].clone(), batch.prompts[:2])
        _same_scores(s.answer(batch), before, "values must not depend on other groups", 0.0)


def one_member(s: _Group) -> None:
    """A single member, which cannot be compared, is marked missing."""
    for batch in s.batches:
        requirement = "a single member must be marked missing"
        found = _without_error(partial(s.score, batch.media[:1].clone(), batch.prompts[:1]), requirement)
        _check_scores(s.reward, found, 1)
        that(bool(found.missing.all()), requirement)


def examples(s: _Group) -> None:
    """Examples are valid and deterministic; scored in one group per prompt, every good one is above every bad one."""
    found = list(s.reward.examples())
    if not found:
        raise unittest.SkipTest("the reward has no examples")
    groups: dict[tuple[object, str], list[Example]] = {}
    for example in found:
        groups.setdefault((example.prompt.key, repr(sorted(example.prompt.metadata.items()))), []).append(example)

    def values() -> dict[str, float]:
        return {name: value for group in groups.values() for name, value in _compared(s, group).items()}

    check_examples(s, found, s.reward.examples(), values)


def _compared(s: _Group, group: Sequence[Example]) -> dict[str, float]:
    names = ", ".join(example.name for example in group)
    that(len({example.media.shape for example in group}) == 1, f"examples of one prompt must have one size: {names}")
    s.reward.check_prompts([group[0].prompt])
    answer = s.score(torch.stack([example.media for example in group]), [example.prompt for example in group])
    that(not answer.missing.any(), f"examples must not be missing: {names}")
    return dict(zip([example.name for example in group], answer.values.tolist(), strict=True))
