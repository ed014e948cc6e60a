"""Checks of rewards: one value or missing mark per sample, independent of the batch."""

from __future__ import annotations

import json
import threading
import unittest
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from dgpo_core.contracts import RewardBase, RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_kit.contracts._assertions import close, equal, global_state_left_alone, that
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_kit.contracts._images import SIDE, SIZES, drawn, media_of_size, prompts_about
from dgpo_kit.given import NeedsInput
from dgpo_schemas.diagnostics import Diagnostics

__all__ = ["check_reward", "reward_checks"]

FRAMES = 3
MAX_EXAMPLES = 6
"""Maximum number of examples in a batch, because rewards may be slow."""
MAX_THREADS = 8
"""Maximum number of threads that call a reward at the same time."""


def check_reward(reward: RewardModel, media: Tensor, prompts: Sequence[Prompt]) -> None:
    """Check that a reward returns one value in its range or a missing mark per sample, independent of the batch, in any
    thread.

    media: [B, ...] in the format of the reward, with one prompt each; include some that are hard to score. Raises
    AssertionError at the first violation.
    """
    batch = Batch("image" if media.dim() == 4 else "video", media, tuple(prompts))
    run_all(_checks(lambda: _Subject(reward, (batch,))))


def reward_checks(make: Callable[[], RewardModel], prompts: Sequence[Prompt] = ()) -> Iterator[Check]:
    """Yield the checks of a reward on its examples and on generated images (or videos).

    Generated media get `prompts`, or else the prompts of the examples, or else generated prompts. The checks raise
    NeedsInput if the reward rejects the generated prompts.
    """

    @cache
    def subject() -> _Subject:
        reward = make()
        return _Subject(reward, _batches(reward, tuple(prompts)))

    yield from _checks(subject)
    yield Check("close", lambda: _close(subject().reward, subject.cache_clear))


def _checks(subject: Callable[[], _Subject]) -> Iterator[Check]:
    return checks_of(
        subject, declares, prompts, scores, untouched, determinism, batch_invariance, empty_batch, sizes, not_finite,
        diagnostics, threads, random_state, examples,
    )  # fmt: skip


def _close(reward: RewardBase, forget: Callable[[], None]) -> None:
    reward.close()
    forget()  # later checks build a new reward


# -- input ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Media of one kind and size, with one prompt each."""

    medium: str
    media: Tensor
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class _Subject:
    reward: RewardModel
    batches: tuple[Batch, ...]

    @torch.no_grad()
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Call the reward as the engine does."""
        return self.reward.score(media, prompts)

    def answer(self, batch: Batch) -> Scores:
        return self.score(batch.media.clone(), batch.prompts)


def _batches(reward: RewardBase, prompts: tuple[Prompt, ...]) -> tuple[Batch, ...]:
    known = list(reward.examples())
    generated = not prompts and not known
    metadata = {} if reward.group_by is None else {reward.group_by: "any"}
    chosen = prompts or tuple(e.prompt for e in known) or tuple(prompts_about(metadata))
    try:
        reward.check_prompts(chosen)
    except UserError as error:
        if not generated:
            raise
        raise NeedsInput(f"prompts: it has no examples() and rejects the generated prompts ({error})") from error
    return tuple(_batch(medium, known, chosen) for medium in sorted(reward.media))


def _batch(medium: str, known: Sequence[Example], prompts: Sequence[Prompt]) -> Batch:
    """Return good and bad examples of one size, and generated media of that size."""
    dims = 3 if medium == "image" else 4
    matching = [e for e in known if e.media.dim() == dims]
    shape = tuple(matching[0].media.shape) if matching else (*(() if dims == 3 else (FRAMES,)), 3, SIDE, SIDE)
    matching = [e for e in matching if tuple(e.media.shape) == shape]
    good, bad = [e for e in matching if e.good], [e for e in matching if not e.good]
    chosen = [*good[: MAX_EXAMPLES // 2], *bad[: MAX_EXAMPLES // 2]]
    others = drawn(shape)
    media = torch.cat([torch.stack([e.media.float() for e in chosen]), others]) if chosen else others
    shown = [prompts[i % len(prompts)] for i in range(len(others))]
    return Batch(medium, media, (*(e.prompt for e in chosen), *shown))


# -- requirements ---------------------------------------------------------------------------------------------------


def declares(s: _Subject) -> None:
    """The reward declares valid `media`, `range` and `concurrency`."""
    reward = s.reward
    that(reward.media and reward.media <= {"image", "video"}, "`media` must contain image, video or both")
    that(hasattr(reward, "range"), "the reward must declare its `range`")
    low, high = reward.range
    that(low < high, f"`range` must be (lowest, highest value), got {reward.range}")
    concurrency = reward.concurrency
    that(type(concurrency) is int and concurrency >= 1, f"`concurrency` must be an integer >= 1, got {concurrency!r}")


def prompts(s: _Subject) -> None:
    """The reward accepts the prompts, which have the metadata key `group_by`."""
    for batch in s.batches:
        s.reward.check_prompts(batch.prompts)
        key = s.reward.group_by
        present = key is None or all(key in p.metadata for p in batch.prompts)
        that(present, f"prompts must have the key {key}, as `group_by` declares")


def scores(s: _Subject) -> None:
    """Values are float32 [B] in the declared range; missing marks are bool [B]."""
    for batch in s.batches:
        _check_scores(s.reward, s.answer(batch), len(batch.prompts))


def untouched(s: _Subject) -> None:
    """Media are not modified, because the engine passes them to other rewards."""
    for batch in s.batches:
        shown = batch.media.clone()
        s.score(shown, batch.prompts)
        equal(shown, batch.media, "media must not be modified")


def determinism(s: _Subject) -> None:
    """Scores depend on media and prompts alone."""
    for batch in s.batches:
        _same_scores(s.answer(batch), s.answer(batch), "scores must be deterministic", 0.0)


def batch_invariance(s: _Subject) -> None:
    """A sample has the same score alone, in a batch, and in a reversed batch."""
    requirement = "a score must not depend on the other samples of the batch"
    for batch in s.batches:
        together = s.answer(batch)
        alone = [s.score(batch.media[i : i + 1].clone(), batch.prompts[i : i + 1]) for i in range(len(batch.prompts))]
        joined = Scores(torch.cat([scores.values for scores in alone]), torch.cat([scores.missing for scores in alone]))
        _same_scores(joined, together, requirement, 1e-5)
        backwards = s.score(batch.media.flip(0), batch.prompts[::-1])
        _same_scores(Scores(backwards.values.flip(0), backwards.missing.flip(0)), together, requirement, 1e-5)


def empty_batch(s: _Subject) -> None:
    """An empty batch returns empty scores."""
    for batch in s.batches:
        _check_scores(s.reward, s.score(batch.media[:0].clone(), ()), 0)


def sizes(s: _Subject) -> None:
    """Media of any size, including single pixels, are scored or marked missing; no exception is raised."""
    for batch in s.batches:
        shown = [batch.prompts[i % len(batch.prompts)] for i in range(3)]
        for height, width in SIZES:
            for frames in (1, FRAMES) if batch.medium == "video" else (1,):
                media = media_of_size(batch.medium, height, width, frames)
                requirement = f"{batch.medium}s of {height}x{width} must be scored or missing"
                _check_scores(s.reward, _without_error(partial(s.score, media, shown), requirement), len(shown))


def not_finite(s: _Subject) -> None:
    """Samples with nan or infinity do not change the scores of other samples. The engine marks them missing."""
    for batch in s.batches:
        before = s.answer(batch)
        media = batch.media.clone()
        broken = torch.zeros(len(media), dtype=torch.bool)
        for i, value in ((0, torch.nan), (len(media) - 1, torch.inf)):
            media[i, ..., 0] = value
            broken[i] = True
        after = _without_error(partial(s.score, media, batch.prompts), "nonfinite samples must be scored or missing")
        kept = ~broken
        requirement = "a nonfinite sample must not change the scores of other samples"
        _same_scores(
            Scores(after.values.cpu()[kept], after.missing.cpu()[kept]),
            Scores(before.values.cpu()[kept], before.missing.cpu()[kept]), requirement, 1e-5,
        )  # fmt: skip


def diagnostics(s: _Subject) -> None:
    """Diagnostics are empty, or one JSON-serializable mapping per sample that follows `dgpo_schemas.diagnostics`."""
    for batch in s.batches:
        found, count = s.answer(batch).diagnostics, len(batch.prompts)
        that(len(found) in (0, count), f"there must be {count} diagnostics or none, got {len(found)}")
        for data in json.loads(json.dumps([dict(d) for d in found], allow_nan=False)):
            Diagnostics.model_validate(data)


def threads(s: _Subject) -> None:
    """Scores are the same in other threads, with as many concurrent calls as `concurrency` allows."""
    count = min(s.reward.concurrency, MAX_THREADS)
    for batch in s.batches:
        expected = s.answer(batch)
        for found in _in_threads(partial(s.answer, batch), count):
            _same_scores(found, expected, "scores must be the same in every thread", 0.0)


def random_state(s: _Subject) -> None:
    """Scores do not use a global random generator."""
    for batch in s.batches:
        with global_state_left_alone("a reward"):
            s.answer(batch)


def examples(s: _Subject) -> None:
    """Examples are valid and deterministic, and every good one scores above every bad one."""
    found = list(s.reward.examples())
    if not found:
        raise unittest.SkipTest("the reward has no examples")
    check_examples(s, found, s.reward.examples(), lambda: {e.name: _score_example(s, e) for e in found})


def check_examples(
    s: _Subject, found: Sequence[Example], again: Sequence[Example], score: Callable[[], dict[str, float]]
) -> None:
    """Check the examples `found`: good and bad ones, unique names, the same media in `again`, and every good one above
    every bad one. score: returns a value for each name."""
    that({e.good for e in found} == {True, False}, "examples must include at least one good and one bad one")
    that(len({e.name for e in found}) == len(found), "names of examples must be unique")
    for example in found:
        _check_example(s, example)
    values = score()
    known = {e.name: e for e in again}
    for first in found:
        that(first.name in known, f"every call of `examples` must return example {first.name}")
        equal(known[first.name].media, first.media, f"example {first.name} must be deterministic")
    good = min((e for e in found if e.good), key=lambda e: values[e.name])
    bad = max((e for e in found if not e.good), key=lambda e: values[e.name])
    scores = f"{good.name} {values[good.name]:g}, {bad.name} {values[bad.name]:g}"
    that(values[good.name] > values[bad.name], f"good examples must score above bad ones: {scores}")


def _check_example(s: _Subject, example: Example) -> None:
    media, name = example.media, f"example {example.name}"
    ranks = {"image": 3, "video": 4}
    dims = {ranks[medium] for medium in s.reward.media}
    expected = f"{name} must be [3, H, W] for image or [F, 3, H, W] for video, as `media` declares"
    that(media.dim() in dims and media.shape[-3] == 3, f"{expected}, got {list(media.shape)}")
    that(media.is_floating_point(), f"{name} must be floating point, got {media.dtype}")
    that(bool(((media >= 0) & (media <= 1)).all()), f"{name} must lie in [0, 1]")


def _score_example(s: _Subject, example: Example) -> float:
    s.reward.check_prompts([example.prompt])
    scores = s.score(example.media[None].clone(), [example.prompt])
    that(not scores.missing.any(), f"example {example.name} must not be missing")
    return float(scores.values[0])


# -- scores ---------------------------------------------------------------------------------------------------------


def _check_scores(reward: RewardBase, scores: Scores, count: int) -> None:
    values, missing = scores.values, scores.missing
    that(values.shape == (count,), f"`values` must have shape [B] [{count}], got {list(values.shape)}")
    that(missing.shape == (count,), f"`missing` must have shape [B] [{count}], got {list(missing.shape)}")
    that(values.dtype == torch.float32, f"`values` must be float32, got {values.dtype}")
    that(missing.dtype == torch.bool, f"`missing` must be bool, got {missing.dtype}")
    present = values[~missing]
    low, high = reward.range
    that(present.isfinite().all(), "nonfinite values must be marked missing")
    inside = bool(((present >= low) & (present <= high)).all())
    that(inside, f"values must lie in the declared range {reward.range}, got {present.tolist()}")


def _same_scores(found: Scores, expected: Scores, requirement: str, tolerance: float) -> None:
    equal(found.missing.cpu(), expected.missing.cpu(), requirement)
    present = ~expected.missing
    close(found.values[present], expected.values[present], requirement, tolerance)


def _without_error(call: Callable[[], Scores], requirement: str) -> Scores:
    try:
        return call()
    except Exception as error:
        raise AssertionError(f"{requirement}, got an error ({type(error).__name__}: {error})") from error


def _in_threads(call: Callable[[], Scores], count: int) -> list[Scores]:
    """Return the results of `count` threads that call at the same time."""
    found: list[Scores] = []
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def work() -> None:
        start.wait()
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    where = "another thread" if count == 1 else f"{count} threads at once, as `concurrency` declares"
    that(not errors, f"calls from {where} must not fail: {errors[:1]}")
    return found
