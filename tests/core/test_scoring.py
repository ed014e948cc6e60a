"""Scores: in order though made on another thread, and never 0 where there is none."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.training import executors
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.scored import ScoredSamples
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Path, Prompt, Rollout, ScoredGroups, Scores
from dgpo_schemas.sections.rewards import ScoringSection

Score = Callable[[Tensor, Sequence[Prompt]], Any]
PROMPTS = [Prompt(f"image {i}") for i in range(8)]


class Scripted(RewardModel):
    """Scores as a function says."""

    range = (0.0, 1.0)

    def __init__(self, function: Score) -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.function = function

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Any:
        return self.function(media, prompts)


def brightness(media: Tensor, prompts: Sequence[Prompt] = ()) -> Scores:
    values = media.flatten(1).mean(1)
    return Scores(values, torch.zeros(len(media), dtype=torch.bool), tuple({"seen": float(v)} for v in values))


def images(*levels: float, size: int = 4) -> Tensor:
    return torch.stack([torch.full((3, size, size), level) for level in levels])


@pytest.fixture
def make() -> Iterator[Callable[..., Scorer]]:
    """`make(function, ...)`: a scorer of rewards a, b, ... with weight 1, or `(function, weight)`."""
    made: list[Scorer] = []

    def make_scorer(*rewards: Score | tuple[Score, float]) -> Scorer:
        pairs = [reward if isinstance(reward, tuple) else (reward, 1.0) for reward in rewards]
        made.append(Scorer([Reward("abcd"[i], weight, Scripted(f)) for i, (f, weight) in enumerate(pairs)]))
        return made[-1]

    yield make_scorer
    for scorer in made:
        scorer.close()


Make = Callable[..., Scorer]


def submit(scorer: Scorer, *batches: Sequence[float]) -> None:
    start = 0
    for levels in batches:
        scorer.submit(images(*levels), PROMPTS[start : start + len(levels)])
        start += len(levels)


# -- the thread -----------------------------------------------------------------------------------------------------


def test_scores_keep_the_order_of_their_samples(make: Make) -> None:
    seen: list[str] = []

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        seen.extend(prompt.text for prompt in prompts)
        return brightness(media)

    scorer = make(score)
    submit(scorer, [0.5, 0.1], [0.9], [0.3, 0.7, 0.2])
    scored = scorer.collect()
    assert scored.values["a"].dtype == torch.float64
    assert scored.values["a"].tolist() == pytest.approx([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])
    assert [d["seen"] for d in scored.diagnostics["a"]] == scored.values["a"].tolist()
    assert seen == [p.text for p in PROMPTS[:6]]
    assert scored.seconds.keys() == {"a"}
    assert scored.seconds["a"] > 0


def test_submitting_does_not_wait_and_a_reward_is_called_once_at_a_time(make: Make) -> None:
    go, threads = threading.Event(), set()

    def watched() -> Score:
        inside: list[int] = []

        def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            inside.append(+1)
            assert sum(inside) == 1
            assert go.wait(10)
            threads.add(threading.current_thread())
            inside.append(-1)
            return brightness(media)

        return score

    scorer = make(watched(), watched())
    submit(scorer, [0.5], [0.25], [0.75])
    go.set()  # never reached if `submit` waited
    scored = scorer.collect()
    assert scorer.failures == []
    assert scored.values["a"].tolist() == scored.values["b"].tolist() == [0.5, 0.25, 0.75]
    assert len(threads) == 2, "one for each of the two rewards"
    assert threading.main_thread() not in threads


def test_collecting_takes_what_came_since_the_last_time(make: Make) -> None:
    scorer = make(brightness)
    submit(scorer, [0.25], [0.5])
    assert scorer.collect().values["a"].tolist() == [0.25, 0.5]
    submit(scorer, [0.75])
    assert scorer.collect().values["a"].tolist() == [0.75]


def test_scores_are_made_without_gradient(make: Make) -> None:
    parameter = torch.nn.Parameter(torch.ones(()))
    enabled = []

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        enabled.append(torch.is_grad_enabled())
        with torch.enable_grad():
            return Scores(media.mean((1, 2, 3)) * parameter, torch.zeros(len(media), dtype=torch.bool))

    scorer = make(score)
    submit(scorer, [0.5])
    scored = scorer.collect()
    assert enabled == [False]
    assert not scored.values["a"].requires_grad
    assert scored.diagnostics["a"] == ({},)


def test_discarding_drops_what_was_submitted_without_waiting(make: Make) -> None:
    started, go, seen = threading.Event(), threading.Event(), []

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        seen.append(prompts[0].text)
        started.set()
        assert go.wait(10)
        return brightness(media)

    scorer = make(score)
    submit(scorer, [0.1], [0.2], [0.3])
    assert started.wait(10)
    scorer.discard()  # the first is at work, the others are not yet
    scorer.submit(images(0.75), PROMPTS[7:])
    go.set()
    assert scorer.collect().values["a"].tolist() == [0.75]
    assert seen == ["image 0", "image 7"]


def test_closing_leaves_a_reward_behind_that_hangs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "PATIENCE", 0.01)
    started, go = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        threads.append(threading.current_thread())
        started.set()
        go.wait()
        return brightness(media)

    scorer = make(score)
    submit(scorer, [0.1])
    assert started.wait(10)
    scorer.close()
    assert threads[0].is_alive()
    assert threads[0].daemon, "else the interpreter would wait for it when it ends"
    go.set()
    threads[0].join(10)
    assert not threads[0].is_alive()


def test_closing_ends_the_thread(make: Make) -> None:
    threads: list[threading.Thread] = []

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        threads.append(threading.current_thread())
        return brightness(media)

    scorer = make(score)
    submit(scorer, [0.1])
    scorer.collect()
    scorer.close()
    assert not threads[0].is_alive()


# -- what is missing ------------------------------------------------------------------------------------------------


def _two(values: Any, missing: Any = (False, False), diagnostics: Any = ()) -> Score:
    return lambda media, prompts: Scores(torch.as_tensor(values), torch.as_tensor(missing), diagnostics)


def _raise(error: BaseException) -> Score:
    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        raise error

    return score


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (_two([[0.5], [0.5]]), r"ValueError: returned values \(2, 1\) and missing \(2,\) for 2 samples"),
        (_two([0.5]), r"returned values \(1,\)"),
        (_two(0.5), r"returned values \(\)"),
        (_two([0.5] * 3, [False] * 3), r"returned values \(3,\) and missing \(3,\) for 2 samples"),
        (_two([0.5, 0.5], [False]), r"missing \(1,\)"),
        (_two([0.5, 0.5], [0, 1]), r"a missing mask of torch.int64, not torch.bool"),
        (_two([0.5, 0.5], diagnostics=({},)), "returned 1 diagnostics for 2 samples"),
        (_two([0.5, 0.5], diagnostics=({},) * 3), "returned 3 diagnostics for 2 samples"),
        (_two([0.5, 0.5], diagnostics=({}, "seen")), "returned diagnostics that are not mappings"),
        (lambda media, prompts: [0.5, 0.5], "ValueError: returned list, not Scores"),
        (lambda media, prompts: None, "ValueError: returned NoneType, not Scores"),
        (_raise(RuntimeError("out of memory")), "RuntimeError: out of memory"),
        (_raise(SystemExit("no license")), "SystemExit: no license"),
        (_raise(AssertionError()), "AssertionError"),
    ],
)
def test_a_reward_that_fails_leaves_its_micro_batch_missing_and_nothing_else(
    make: Make, caplog: pytest.LogCaptureFixture, score: Score, reason: str
) -> None:
    turn = itertools.count()

    def second_time(media: Tensor, prompts: Sequence[Prompt]) -> Any:
        return score(media, prompts) if next(turn) == 1 else brightness(media)

    scorer = make(second_time, brightness)
    submit(scorer, [0.5, 0.25], [0.5, 0.25], [0.75])
    scored = scorer.collect()
    assert scored.values["a"].isnan().tolist() == [False, False, True, True, False]
    assert scored.values["a"][[0, 1, 4]].tolist() == [0.5, 0.25, 0.75]
    assert scored.values["b"].tolist() == [0.5, 0.25, 0.5, 0.25, 0.75]
    assert len(scored.diagnostics["a"]) == 5
    assert scored.diagnostics["a"][2]["reason"]
    (failure,) = scorer.failures
    assert failure.startswith("a: ")
    assert re.search(reason, failure)
    assert failure in caplog.text


@pytest.mark.parametrize(
    ("value", "failure"),
    [
        (float("nan"), "a: it returned values that are not finite"),
        (float("inf"), "a: it returned values outside its declared range [0.0, 1.0]"),
        (float("-inf"), "a: it returned values outside its declared range [0.0, 1.0]"),
        (1.001, "a: it returned values outside its declared range [0.0, 1.0]"),
        (-0.001, "a: it returned values outside its declared range [0.0, 1.0]"),
    ],
)
def test_a_value_that_the_reward_cannot_mean_is_missing_and_reported(make: Make, value: float, failure: str) -> None:
    scorer = make(_two([0.5, value], diagnostics=({"x": 1}, {"x": 2})))
    submit(scorer, [0.0, 0.0])
    scored = scorer.collect()
    assert scored.values["a"].isnan().tolist() == [False, True]
    fine, wrong = scored.diagnostics["a"]
    assert fine == {"x": 1}
    assert wrong["x"] == 2
    assert re.fullmatch(r"the value \S+ is not in the declared range \[0\.0, 1\.0\]", wrong["reason"])
    assert scorer.failures == [failure]


@pytest.mark.parametrize("value", [0.0, 1.0, 1 + 5e-5, -5e-5])
def test_rounding_at_the_ends_of_the_range_is_let_pass(make: Make, value: float) -> None:
    scorer = make(_two([0.5, value]))
    submit(scorer, [0.0, 0.0])
    assert scorer.collect().values["a"].tolist() == [0.5, pytest.approx(value)]
    assert scorer.failures == []


def test_without_bounds_only_numbers_count() -> None:
    class Free(Scripted):
        range = (float("-inf"), float("inf"))

    reward = Reward("free", 1.0, Free(_two([-1e30, float("inf")])))
    scores = checked_score(reward, images(0.0, 0.0), PROMPTS[:2])
    assert scores.missing.tolist() == [False, True]
    assert scores.values[0] == pytest.approx(-1e30)


def test_a_reward_that_declares_no_range_fails_and_the_run_goes_on(make: Make) -> None:
    class Boundless(Scripted):
        range = None  # type: ignore[assignment]

    scores = checked_score(Reward("r", 1.0, Boundless(brightness)), images(0.5), PROMPTS[:1])
    assert scores.missing.tolist() == [True]
    assert "NoneType" in scores.diagnostics[0]["reason"]


def test_a_value_that_is_marked_missing_is_ignored(make: Make) -> None:
    scorer = make(_two([0.5, 0.0], [False, True], ({"x": 1}, {"reason": "blurred"})))
    submit(scorer, [0.0, 0.0])
    scored = scorer.collect()
    assert scored.values["a"][0] == 0.5
    assert scored.values["a"][1].isnan()
    assert scored.diagnostics["a"] == ({"x": 1}, {"reason": "blurred"})


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4)])
def test_media_that_are_not_finite_are_missing_whatever_a_reward_says(make: Make, shape: tuple[int, ...]) -> None:
    """A detector sees nothing in a broken image; that is no reason to train against it."""
    scorer = make(_two([0.0, 0.0, 0.0], [False] * 3))
    media = torch.zeros(3, *shape)
    media[0, ..., 1, 1] = torch.nan
    media[2, ..., 0, 0] = torch.inf
    scorer.submit(media, PROMPTS[:3])
    scored = scorer.collect()
    assert scored.values["a"].isnan().tolist() == [True, False, True]
    broken = {"reason": "the media are not finite"}
    assert scored.diagnostics["a"] == (broken, {}, broken)
    assert torch.stack(list(scored.thumbnails)).isfinite().all()
    assert all(values.isfinite().all() for values in scored.statistics.values())


def test_a_failure_is_reported_once(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    scorer = make(_raise(RuntimeError("no lamp")), _raise(RuntimeError("no lamp")))
    submit(scorer, [0.1], [0.2], [0.3])
    scorer.collect()
    # Two rewards fail on their own threads, in any order.
    assert sorted(scorer.failures) == ["a: RuntimeError: no lamp", "b: RuntimeError: no lamp"]
    assert len(caplog.records) == 2
    assert scorer.failure_of("a") == "a: RuntimeError: no lamp"
    assert scorer.failure_of("c") is None


# -- sums and groups ------------------------------------------------------------------------------------------------


def grouped(scorer: Scorer, samples: ScoredSamples, groups: int = 1, **section: Any) -> ScoredGroups:
    """Groups of samples whose latents do not matter."""
    count = len(samples.thumbnails)
    rollouts = [Rollout(range(count), tuple(PROMPTS[:count]), torch.zeros(count, 1))]
    return scorer.groups(samples, rollouts, PROMPTS[:groups], ScoringSection(**section), 1e-4)


def test_rewards_are_summed_by_weight_and_one_missing_makes_the_sum_missing(make: Make) -> None:
    scorer = make((brightness, 2.0), (_two([1.0, 4.0], [False, True]), -0.5))
    submit(scorer, [0.25, 0.5])
    groups = grouped(scorer, scorer.collect())
    assert groups.rewards.dtype == torch.float64
    assert groups.rewards.tolist() == [[2.0 * 0.25 - 0.5 * 1.0, 0.0]]
    assert groups.scored.tolist() == [[True, False]]


@pytest.mark.parametrize("aggregation", ["weighted-sum", "group-normalized"])
def test_a_reward_of_weight_0_is_only_watched(make: Make, aggregation: str) -> None:
    """Whether it has scores makes no difference to the sum."""
    alone, watched = make((brightness, 2.0)), make((brightness, 2.0), (_two([0.0, 9.0], [False, True]), 0.0))
    for scorer in (alone, watched):
        submit(scorer, [0.25, 0.5])
    groups = grouped(watched, watched.collect(), aggregation=aggregation)
    assert groups.scored.tolist() == [[True, True]]
    assert groups.per_reward["b"][0, 0] == 0.0
    assert groups.per_reward["b"][0, 1].isnan()
    if aggregation == "weighted-sum":
        assert groups.rewards.tolist() == [[0.5, 1.0]]
    assert torch.equal(groups.rewards, grouped(alone, alone.collect(), aggregation=aggregation).rewards)


def test_the_aggregation_of_the_run_file_is_followed(make: Make) -> None:
    """0.2 and 0.6 lie one standard deviation (0.2) below and above their mean; 0.9 and 0.1 the other way (0.4)."""
    levels = iter([[0.9, 0.1]])
    scorer = make((brightness, 3.0), lambda media, prompts: brightness(images(*next(levels))))
    submit(scorer, [0.2, 0.6])
    samples = scorer.collect()
    summed = grouped(scorer, samples).rewards[0].tolist()
    assert summed == pytest.approx([3 * 0.2 + 0.9, 3 * 0.6 + 0.1])
    normalized = grouped(scorer, samples, aggregation="group-normalized")
    place = 3 * 0.2 / (0.2 + 1e-4) - 0.4 / (0.4 + 1e-4)
    assert normalized.rewards[0].tolist() == pytest.approx([-place, place], rel=1e-6)
    assert normalized.summed[0].tolist() == summed, "for people to read"


def test_groups(make: Make) -> None:
    """Two groups of three, in micro-batches of four and two."""
    levels = [0.1, 0.2, 0.4, 0.5, 0.8, 0.9]
    scorer = make((lambda media, prompts: Scores(media.mean((1, 2, 3)), media.mean((1, 2, 3)) > 0.85), 10.0))
    x0 = torch.arange(24.0).view(6, 2, 2)
    path = Path(torch.zeros(3, 4, 2, 2), torch.zeros(3))
    rollouts = [Rollout(range(4), tuple(PROMPTS[:4]), x0[:4], path), Rollout(range(4, 6), tuple(PROMPTS[4:6]), x0[4:])]
    submit(scorer, levels[:4], levels[4:])
    groups = scorer.groups(scorer.collect(), rollouts, PROMPTS[:2], ScoringSection(), 1e-4)
    assert groups.prompts == tuple(PROMPTS[:2])
    assert torch.equal(torch.stack(list(groups.x0)), x0)
    assert groups.own == list(range(6))
    assert groups.scored.tolist() == [[True, True, True], [True, True, False]]
    assert groups.rewards.flatten().tolist() == pytest.approx([1, 2, 4, 5, 8, 0])
    assert groups.summed.flatten().tolist() == pytest.approx([1, 2, 4, 5, 8, float("nan")], nan_ok=True)
    assert groups.per_reward["a"][1, 2].isnan()
    assert groups.per_reward["a"][0].tolist() == pytest.approx(levels[:3])
    assert groups.paths == (path,)
    # Flat gray images: no color, no edges, and dark where the level is below a tenth.
    assert {name: values.shape for name, values in groups.statistics.items()} == dict.fromkeys(
        ("saturation", "edge_density", "dark_pixels"), (2, 3)
    )
    assert groups.statistics["dark_pixels"].tolist() == [[0, 0, 0], [0, 0, 0]]
    # The root-mean-square difference of flat images is that of their levels: the mean over three pairs.
    assert groups.diversity.tolist() == pytest.approx([(0.1 + 0.2 + 0.3) / 3, (0.3 + 0.1 + 0.4) / 3], rel=1e-5)


@pytest.mark.parametrize("frames", [0, 3])
def test_large_media_are_compared_as_small_images(make: Make, frames: int) -> None:
    """64 pixels become 32: every thumbnail pixel is the mean of four."""
    shape = (2, frames, 3, 64, 64) if frames else (2, 3, 64, 64)
    media = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    scorer = make(brightness)
    scorer.submit(media, PROMPTS[:2])
    expected = media.reshape(*shape[:-2], 32, 2, 32, 2).mean((-1, -3))
    torch.testing.assert_close(torch.stack(list(scorer.collect().thumbnails)), expected.reshape(2, -1))
