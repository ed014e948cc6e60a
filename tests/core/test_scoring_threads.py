"""Which rewards run at the same time, and that nothing else of them shows: order, failures, the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.training import executors
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.scoring import Scorer
from dgpo_core.types import Prompt, Scores

PROMPTS = [Prompt(f"image {i}") for i in range(24)]
LONG = 20.0
"""Seconds after which a test that waits for what never comes fails."""

Score = Callable[[Tensor, Sequence[Prompt]], Scores]


class Counted(RewardModel):
    """Scores as a function says, and counts the calls that are in it at the same time."""

    range = (0.0, 1.0)

    def __init__(self, function: Score, concurrency: int = 1) -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.function = function
        self.concurrency = concurrency
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            return self.function(media, prompts)
        finally:
            with self._lock:
                self.inside -= 1


def brightness(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
    return Scores(media.flatten(1).mean(1), torch.zeros(len(media), dtype=torch.bool), ({},) * len(media))


def slowly(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
    """Later micro-batches are done sooner."""
    time.sleep(0.05 if int(prompts[0].text.split()[1]) % 3 == 0 else 0.001)
    return brightness(media, prompts)


def meeting(count: int) -> Score:
    """Goes on only when `count` calls are at work at the same time."""
    barrier = threading.Barrier(count)

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        barrier.wait(LONG)  # raises if the others do not come
        return brightness(media, prompts)

    return score


@pytest.fixture
def make() -> Iterator[Callable[..., Scorer]]:
    """`make(model, ...)`: a scorer of rewards a, b, ..."""
    made: list[Scorer] = []

    def make_scorer(*models: RewardModel) -> Scorer:
        made.append(Scorer([Reward("abcdef"[i], 1.0, model) for i, model in enumerate(models)]))
        return made[-1]

    yield make_scorer
    for scorer in made:
        scorer.close()


Make = Callable[..., Scorer]


def submit(scorer: Scorer, count: int, size: int = 1) -> list[float]:
    """Micro-batches of flat images, each sample of a level of its own."""
    levels = [(i + 1) / (count * size + 1) for i in range(count * size)]
    for start in range(0, count * size, size):
        media = torch.tensor(levels[start : start + size]).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        scorer.submit(media, PROMPTS[start : start + size])
    return levels


# -- at the same time -----------------------------------------------------------------------------------------------


def test_two_rewards_run_at_the_same_time(make: Make) -> None:
    both = meeting(2)
    scorer = make(Counted(both), Counted(both))
    levels = submit(scorer, 3)
    scored = scorer.collect()
    assert scorer.failures == []
    for label in "ab":
        assert scored.values[label].tolist() == pytest.approx(levels)


@pytest.mark.parametrize("concurrency", [2, 3, 5])
def test_a_reward_gets_as_many_calls_at_once_as_it_allows(make: Make, concurrency: int) -> None:
    model = Counted(meeting(concurrency), concurrency)
    scorer = make(model)
    levels = submit(scorer, 2 * concurrency)
    assert scorer.collect().values["a"].tolist() == pytest.approx(levels)
    assert scorer.failures == []
    assert model.most == concurrency


@pytest.mark.parametrize("concurrency", [1, 0])
def test_one_at_a_time_is_the_least_and_the_default(make: Make, concurrency: int) -> None:
    model, other = Counted(slowly, concurrency), Counted(slowly, 4)
    scorer = make(model, other)
    submit(scorer, 8)
    scorer.collect()
    assert model.most == 1
    assert other.most > 1, "else this test would not have seen it"
    assert RewardModel.concurrency == 1


def test_one_model_under_two_labels_is_still_called_once_at_a_time(make: Make) -> None:
    """The same options twice make one model: its state is not shared between threads."""
    model = Counted(slowly)
    scorer = make(model, model)
    levels = submit(scorer, 6)
    scored = scorer.collect()
    assert model.most == 1
    for label in "ab":
        assert scored.values[label].tolist() == pytest.approx(levels)


def test_a_slow_reward_does_not_hold_up_a_fast_one(make: Make) -> None:
    go, seen = threading.Event(), []

    def wait(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        assert go.wait(LONG)
        return brightness(media, prompts)

    def fast(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        seen.append(prompts[0].text)
        if len(seen) == 4:
            go.set()  # the slow one is still at its first
        return brightness(media, prompts)

    scorer = make(Counted(wait), Counted(fast))
    submit(scorer, 4)
    scorer.collect()
    assert scorer.failures == []
    assert seen == [p.text for p in PROMPTS[:4]]


# -- what stays in order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_scores_keep_the_order_of_their_samples_however_late_they_come(make: Make, size: int) -> None:
    finished: list[int] = []
    second_done = threading.Event()

    def late(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """The first micro-batch waits for the second."""
        first = int(prompts[0].text.split()[1])
        if first == 0:
            assert second_done.wait(LONG)
        found = brightness(media, prompts)
        finished.append(first)
        if first == size:
            second_done.set()
        return Scores(found.values, found.missing, tuple({"text": prompt.text} for prompt in prompts))

    scorer = make(Counted(late, 4), Counted(brightness))
    levels = submit(scorer, 8, size)
    scored = scorer.collect()
    assert finished != sorted(finished), "the calls did end in another order"
    for label in "ab":
        assert scored.values[label].tolist() == pytest.approx(levels)
    assert [d["text"] for d in scored.diagnostics["a"]] == [p.text for p in PROMPTS[: 8 * size]]
    assert [float(one[0]) for one in scored.thumbnails] == pytest.approx(levels)


def test_seconds_are_those_of_each_reward(make: Make) -> None:
    def nap(seconds: float) -> Score:
        def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            time.sleep(seconds)
            return brightness(media, prompts)

        return score

    scorer = make(Counted(nap(0.03)), Counted(nap(0.06), 2))
    submit(scorer, 4)
    started = time.perf_counter()
    spent = scorer.collect().seconds
    wall = time.perf_counter() - started
    assert spent.keys() == {"a", "b"}
    assert spent["a"] >= 4 * 0.03
    assert spent["b"] >= 4 * 0.06, "threads are added up"
    assert wall < sum(spent.values()), "though they were at work side by side"


def test_a_failure_on_several_threads_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of them find the reason new before one has noted it, unless looking and noting are one act."""

    class Hesitant(list[str]):
        def __contains__(self, item: object) -> bool:
            known = super().__contains__(item)
            time.sleep(0.01)
            return known

    failures = Hesitant()
    together = threading.Barrier(4)

    def fail(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        together.wait(LONG)
        raise RuntimeError("no lamp")

    reward = Reward("a", 1.0, Counted(fail, 4))
    media = torch.zeros(1, 3, 4, 4)
    threads = [threading.Thread(target=checked_score, args=(reward, media, PROMPTS[:1], failures)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert failures == ["a: RuntimeError: no lamp"]
    assert caplog.text.count("reward failed, 1 samples are missing") == 1


def test_discarding_drops_the_calls_of_every_reward(make: Make) -> None:
    started, go = threading.Barrier(3), threading.Event()
    seen: list[str] = []

    def score(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        seen.append(prompts[0].text)
        if len(seen) <= 2:
            started.wait(LONG)
            assert go.wait(LONG)
        return brightness(media, prompts)

    scorer = make(Counted(score), Counted(score))
    submit(scorer, 5)
    started.wait(LONG)  # each is at its first
    scorer.discard()
    scorer.submit(torch.full((1, 3, 4, 4), 0.75), PROMPTS[9:10])
    go.set()
    scored = scorer.collect()
    assert scored.values["a"].tolist() == scored.values["b"].tolist() == [0.75]
    assert sorted(seen) == ["image 0", "image 0", "image 9", "image 9"]


# -- the end --------------------------------------------------------------------------------------------------------


def running() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "reward"}


def test_closing_ends_every_thread(make: Make) -> None:
    before = running()
    scorer = make(Counted(brightness, 3), Counted(brightness))
    assert len(running() - before) == 4
    submit(scorer, 5)
    scorer.close()  # what was not collected is dropped
    assert running() - before == set()


def test_closing_does_not_wait_for_a_reward_that_hangs(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "PATIENCE", 0.2)
    started, go = threading.Event(), threading.Event()
    before = running()

    def hang(media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        started.set()
        assert go.wait(LONG)
        return brightness(media, prompts)

    scorer = make(Counted(hang, 2), Counted(brightness, 2))
    submit(scorer, 1)
    assert started.wait(LONG)
    scorer.close()
    (left,) = running() - before
    assert left.daemon, "else the interpreter would wait for it when it ends"
    go.set()
    left.join(LONG)
    assert not left.is_alive()
