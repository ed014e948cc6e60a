"""Rewards: one answer a sample, whatever else is in the batch."""

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
AT_MOST = 6
"""Examples in a batch; a reward may be slow."""
AT_ONCE = 8
"""Threads that try what `concurrency` allows."""


def check_reward(reward: RewardModel, media: Tensor, prompts: Sequence[Prompt]) -> None:
    """One value in the declared range or a missing mark per sample, whatever else is in the batch; any thread.

    media [B, ...] as the reward takes them, with the prompt of each; include some that are hard to score.
    """
    batch = Batch("image" if media.dim() == 4 else "video", media, tuple(prompts))
    run_all(_checks(lambda: _Subject(reward, (batch,))))


def reward_checks(make: Callable[[], RewardModel], prompts: Sequence[Prompt] = ()) -> Iterator[Check]:
    """What a reward promises, tried on its own examples and on drawn images (or videos).

    The drawn ones are shown with `prompts`; without those with the examples' prompts; without examples with generated
    ones. NeedsInput if it refuses the generated ones.
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
    forget()  # whatever is checked afterwards gets a new one


# -- what it is tried on --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Media of one kind and size with the prompt of each."""

    medium: str
    media: Tensor
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class _Subject:
    reward: RewardModel
    batches: tuple[Batch, ...]

    @torch.no_grad()
    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """As the engine calls it."""
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
        raise NeedsInput(f"prompts: it has no examples() and refuses the generated prompts ({error})") from error
    return tuple(_batch(medium, known, chosen) for medium in sorted(reward.media))


def _batch(medium: str, known: Sequence[Example], prompts: Sequence[Prompt]) -> Batch:
    """Examples of one size, good and bad in turn, and drawn media of that size."""
    dims = 3 if medium == "image" else 4
    mine = [e for e in known if e.media.dim() == dims]
    shape = tuple(mine[0].media.shape) if mine else (*(() if dims == 3 else (FRAMES,)), 3, SIDE, SIDE)
    mine = [e for e in mine if tuple(e.media.shape) == shape]
    sides = [e for e in mine if e.good], [e for e in mine if not e.good]
    chosen = [*sides[0][: AT_MOST // 2], *sides[1][: AT_MOST // 2]]
    others = drawn(shape)
    media = torch.cat([torch.stack([e.media.float() for e in chosen]), others]) if chosen else others
    shown = [prompts[i % len(prompts)] for i in range(len(others))]
    return Batch(medium, media, (*(e.prompt for e in chosen), *shown))


# -- promises -------------------------------------------------------------------------------------------------------


def declares(s: _Subject) -> None:
    """What media it takes, its range, how many calls may run at once."""
    reward = s.reward
    that(reward.media and reward.media <= {"image", "video"}, "it declares whether it takes images or videos")
    that(hasattr(reward, "range"), "it declares its range")
    low, high = reward.range
    that(low < high, f"its range {reward.range} goes from the smallest to the largest value")
    concurrency = reward.concurrency
    that(type(concurrency) is int and concurrency >= 1, f"concurrency is a number of calls, not {concurrency!r}")


def prompts(s: _Subject) -> None:
    """Those that it is scored with pass its own check, and have the key that evaluation groups by."""
    for batch in s.batches:
        s.reward.check_prompts(batch.prompts)
        key = s.reward.group_by
        that(key is None or all(key in p.metadata for p in batch.prompts), f"prompts have the key {key} it groups by")


def scores(s: _Subject) -> None:
    """Values float32 [B] in the declared range, missing bool [B]."""
    for batch in s.batches:
        _check_scores(s.reward, s.answer(batch), len(batch.prompts))


def untouched(s: _Subject) -> None:
    """Media belong to the engine, which shows them to other rewards."""
    for batch in s.batches:
        shown = batch.media.clone()
        s.score(shown, batch.prompts)
        equal(shown, batch.media, "media are left alone")


def determinism(s: _Subject) -> None:
    """Media and prompts decide."""
    for batch in s.batches:
        _same_scores(s.answer(batch), s.answer(batch), "scores are the same every time", 0.0)


def batch_invariance(s: _Subject) -> None:
    """Alone, and in the reverse order, a sample has the same score."""
    promise = "a score does not depend on the others in the batch"
    for batch in s.batches:
        together = s.answer(batch)
        alone = [s.score(batch.media[i : i + 1].clone(), batch.prompts[i : i + 1]) for i in range(len(batch.prompts))]
        joined = Scores(torch.cat([one.values for one in alone]), torch.cat([one.missing for one in alone]))
        _same_scores(joined, together, promise, 1e-5)
        backwards = s.score(batch.media.flip(0), batch.prompts[::-1])
        _same_scores(Scores(backwards.values.flip(0), backwards.missing.flip(0)), together, promise, 1e-5)


def empty_batch(s: _Subject) -> None:
    """Nothing in, nothing out."""
    for batch in s.batches:
        _check_scores(s.reward, s.score(batch.media[:0].clone(), ()), 0)


def sizes(s: _Subject) -> None:
    """Media of any size, single pixels included, are scored or missing; a batch is not lost to an exception."""
    for batch in s.batches:
        shown = [batch.prompts[i % len(batch.prompts)] for i in range(3)]
        for height, width in SIZES:
            for frames in (1, FRAMES) if batch.medium == "video" else (1,):
                media = media_of_size(batch.medium, height, width, frames)
                promise = f"{batch.medium}s of {height}x{width} are scored or missing"
                _check_scores(s.reward, _without_error(partial(s.score, media, shown), promise), len(shown))


def not_finite(s: _Subject) -> None:
    """nan and infinity cost no other sample its score. Their own counts for nothing: the engine marks them missing."""
    for batch in s.batches:
        before = s.answer(batch)
        media = batch.media.clone()
        broken = torch.zeros(len(media), dtype=torch.bool)
        for i, value in ((0, torch.nan), (len(media) - 1, torch.inf)):
            media[i, ..., 0] = value
            broken[i] = True
        after = _without_error(
            partial(s.score, media, batch.prompts), "samples that are not finite are scored or missing"
        )
        kept = ~broken
        promise = "a sample that is not finite leaves the others their scores"
        _same_scores(
            Scores(after.values.cpu()[kept], after.missing.cpu()[kept]),
            Scores(before.values.cpu()[kept], before.missing.cpu()[kept]), promise, 1e-5,
        )  # fmt: skip


def diagnostics(s: _Subject) -> None:
    """None, or one JSON-able mapping a sample; `reason`, `marks` and `clauses` as `dgpo_schemas.diagnostics` says."""
    for batch in s.batches:
        found, count = s.answer(batch).diagnostics, len(batch.prompts)
        that(len(found) in (0, count), f"there are {count} diagnostics or none, not {len(found)}")
        for one in json.loads(json.dumps([dict(d) for d in found], allow_nan=False)):
            Diagnostics.model_validate(one)


def threads(s: _Subject) -> None:
    """From another thread, and from as many at once as `concurrency` allows, the scores are the same."""
    count = min(s.reward.concurrency, AT_ONCE)
    for batch in s.batches:
        expected = s.answer(batch)
        for found in _at_once(partial(s.answer, batch), count):
            _same_scores(found, expected, "a thread makes no difference", 0.0)


def random_state(s: _Subject) -> None:
    """A reward is not drawn."""
    for batch in s.batches:
        with global_state_left_alone("a reward"):
            s.answer(batch)


def examples(s: _Subject) -> None:
    """Valid, the same every time, and the worst good one scores above the best bad one."""
    found = list(s.reward.examples())
    if not found:
        raise unittest.SkipTest("it has no examples")
    check_examples(s, found, s.reward.examples(), lambda: {e.name: _score_example(s, e) for e in found})


def check_examples(
    s: _Subject, found: Sequence[Example], again: Sequence[Example], score: Callable[[], dict[str, float]]
) -> None:
    """Good and bad, different names, the same media `again`, and every good one above every bad one; `score` gives a
    value for each name."""
    that({e.good for e in found} == {True, False}, "examples are good and bad, at least one of each, or none at all")
    that(len({e.name for e in found}) == len(found), "examples have different names")
    for example in found:
        _check_example(s, example)
    values = score()
    known = {e.name: e for e in again}
    for first in found:
        that(first.name in known, f"example {first.name} is there every time")
        equal(known[first.name].media, first.media, f"example {first.name} is the same every time")
    good = min((e for e in found if e.good), key=lambda e: values[e.name])
    bad = max((e for e in found if not e.good), key=lambda e: values[e.name])
    promise = f"good examples score above bad ones: {good.name} {values[good.name]:g}, {bad.name} {values[bad.name]:g}"
    that(values[good.name] > values[bad.name], promise)


def _check_example(s: _Subject, example: Example) -> None:
    media, name = example.media, f"example {example.name}"
    taken = {"image": 3, "video": 4}
    dims = {taken[medium] for medium in s.reward.media}
    that(media.dim() in dims and media.shape[-3] == 3, f"{name} is [3, H, W] or [F, 3, H, W], as the reward takes it")
    that(media.is_floating_point(), f"{name} is float, not {media.dtype}")
    that(bool(((media >= 0) & (media <= 1)).all()), f"{name} lies in [0, 1]")


def _score_example(s: _Subject, example: Example) -> float:
    s.reward.check_prompts([example.prompt])
    scores = s.score(example.media[None].clone(), [example.prompt])
    that(not scores.missing.any(), f"example {example.name} is scored, not missing")
    return float(scores.values[0])


# -- scores ---------------------------------------------------------------------------------------------------------


def _check_scores(reward: RewardBase, scores: Scores, count: int) -> None:
    values, missing = scores.values, scores.missing
    that(values.shape == (count,), f"there is one value a sample: [{count}], not {list(values.shape)}")
    that(missing.shape == (count,), f"there is one missing mark a sample: [{count}], not {list(missing.shape)}")
    that(values.dtype == torch.float32, f"values are float32, not {values.dtype}")
    that(missing.dtype == torch.bool, f"missing marks are bool, not {missing.dtype}")
    present = values[~missing]
    low, high = reward.range
    that(present.isfinite().all(), "a value that is no number is marked missing")
    inside = bool(((present >= low) & (present <= high)).all())
    that(inside, f"values lie in the declared range {reward.range}: {present.tolist()}")


def _same_scores(found: Scores, expected: Scores, promise: str, tolerance: float) -> None:
    equal(found.missing.cpu(), expected.missing.cpu(), promise)
    present = ~expected.missing
    close(found.values[present], expected.values[present], promise, tolerance)


def _without_error(call: Callable[[], Scores], promise: str) -> Scores:
    try:
        return call()
    except Exception as error:
        raise AssertionError(f"{promise}, not an error ({type(error).__name__}: {error})") from error


def _at_once(call: Callable[[], Scores], count: int) -> list[Scores]:
    """What `count` threads get that start together."""
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
    where = "another thread" if count == 1 else f"{count} threads at once, as its concurrency says"
    that(not errors, f"it can be called from {where}: {errors[:1]}")
    return found
