"""Rewards that compare see whole groups, however micro-batches and processes cut them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import GroupReward, RewardModel
from dgpo_core.distributed.comparing import NOT_FINITE, NOTHING_TO_COMPARE, Layout, Members, WholeGroup
from dgpo_core.distributed.processes import Processes, split_samples
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.reward_calls import Reward, checked_group
from dgpo_core.training.scored import merged
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Prompt, SampleKey, Scores
from dgpo_kit.toy import WinRate, WinRateOptions, run_data
from dgpo_schemas.run import RunConfig

CPU = torch.device("cpu")
GROUPS, MEMBERS = 3, 4
TOTAL = GROUPS * MEMBERS
PROMPTS = [Prompt(f"prompt {i // MEMBERS}") for i in range(TOTAL)]
LEVELS = torch.rand(TOTAL, generator=torch.Generator().manual_seed(1))
MEDIA = LEVELS.view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
DRAWS = Draws(5).at("rollout")


class Reported(GroupReward):
    """A function's answers; remembers what it was shown."""

    range = (0.0, 1.0)

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__(None, device=CPU)
        self.function, self.shown = function, list[tuple[int, str, list[SampleKey]]]()

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Any:
        self.shown.append((len(media), prompt.text, list(keys)))
        return self.function(media)


class Brightness(RewardModel):
    range = (0.0, 1.0)

    def __init__(self) -> None:
        super().__init__(None, device=CPU)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return all_scored(media.flatten(1).mean(1))


def all_scored(values: Tensor) -> Scores:
    return Scores(values, torch.zeros(len(values), dtype=torch.bool))


def win_rate(**options: Any) -> WinRate:
    return WinRate(WinRateOptions(**options), device=CPU)


def by_hand(levels: Tensor) -> list[float]:
    """Share of the others that each is brighter than, loop by loop."""
    wins = []
    for i, mine in enumerate(levels.tolist()):
        rivals = [theirs for j, theirs in enumerate(levels.tolist()) if j != i]
        wins.append(sum(1.0 if mine > theirs else 0.5 if mine == theirs else 0.0 for theirs in rivals) / len(rivals))
    return wins


def layout(samples: Sequence[Sequence[int]] = (range(TOTAL),), rank: int = 0) -> Layout:
    return Layout(MEMBERS, DRAWS, samples, rank)


@pytest.fixture
def closing() -> Iterator[list[Scorer]]:
    made: list[Scorer] = []
    yield made
    for scorer in made:
        scorer.close()


def score(scorer: Scorer, micro_batch: int, media: Tensor = MEDIA) -> Any:
    scorer.expect(layout())
    for start in range(0, TOTAL, micro_batch):
        rows = range(start, min(start + micro_batch, TOTAL))
        scorer.submit(media[rows.start : rows.stop], PROMPTS[rows.start : rows.stop], samples=rows)
    scorer.complete(Processes())
    return scorer.collect()


# -- one process ------------------------------------------------------------------------------------------------------


def test_the_toy_s_win_rate_by_hand() -> None:
    levels = torch.tensor([0.25, 0.75, 0.5, 0.75])
    media = levels.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    found = win_rate().score_group(media, PROMPTS[0], [(i,) for i in range(4)])
    assert by_hand(levels) == [0, 2.5 / 3, 1 / 3, 2.5 / 3]
    assert found.values.tolist() == pytest.approx(by_hand(levels))


@pytest.mark.parametrize("micro_batch", range(1, TOTAL + 1))
def test_whole_groups_at_any_micro_batch(micro_batch: int, closing: list[Scorer]) -> None:
    reported = Reported(lambda media: all_scored(media.flatten(1).mean(1)))
    rewards = [Reward("wins", 1.0, win_rate()), Reward("bright", 1.0, Brightness()), Reward("told", 0.0, reported)]
    closing.append(Scorer(rewards))
    for _ in range(2):  # the second iteration knows nothing of the first
        scored = score(closing[0], micro_batch)
        expected = [value for g in range(GROUPS) for value in by_hand(LEVELS[g * MEMBERS : (g + 1) * MEMBERS])]
        assert scored.values["wins"].tolist() == pytest.approx(expected)
        torch.testing.assert_close(scored.values["bright"], LEVELS.double())
        assert [one["subscores"]["brightness"] for one in scored.diagnostics["wins"]] == pytest.approx(LEVELS.tolist())
        assert scored.others == {"wins": {}, "told": {}}
        keys = [[DRAWS.at(g, m).key for m in range(MEMBERS)] for g in range(GROUPS)]
        assert reported.shown == [(MEMBERS, f"prompt {g}", keys[g]) for g in range(GROUPS)]
        reported.shown.clear()


def test_members_that_are_not_finite_are_not_shown(closing: list[Scorer]) -> None:
    media = MEDIA.clone()
    media[1, 0, 0, 0] = torch.nan
    media[4:7] = torch.inf
    media[8:] = torch.nan
    reported = Reported(lambda shown: all_scored(shown.flatten(1).mean(1)))
    closing.append(Scorer([Reward("told", 1.0, reported)]))
    scored = score(closing[0], 5, media)
    assert [(count, keys) for count, _, keys in reported.shown] == [(3, [DRAWS.at(0, m).key for m in (0, 2, 3)])]
    assert scored.values["told"].isnan().tolist() == [False, True, False, False] + [True] * 8
    reasons = [one.get("reason") for one in scored.diagnostics["told"]]
    assert reasons == [None, NOT_FINITE, None, None, *[NOT_FINITE] * 3, NOTHING_TO_COMPARE, *[NOT_FINITE] * 4]


def fails(error: BaseException) -> Callable[[Tensor], Scores]:
    def function(media: Tensor) -> Scores:
        if float(media[0, 0, 0, 0]) == float(LEVELS[MEMBERS]):
            raise error
        return all_scored(media.flatten(1).mean(1))

    return function


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (fails(RuntimeError("asleep")), "RuntimeError: asleep"),
        (fails(SystemExit("gone")), "gone"),
        (fails(torch.OutOfMemoryError("too large")), "out of memory, with a group of 4: OutOfMemoryError: too large"),
        (fails(MemoryError()), "out of memory, with a group of 4"),
    ],
)
def test_a_call_that_fails_makes_its_group_missing(
    function: Callable[[Tensor], Scores], reason: str, closing: list[Scorer]
) -> None:
    reported = Reported(function)
    closing.append(Scorer([Reward("told", 1.0, reported)]))
    scored = score(closing[0], 3)
    assert scored.values["told"].isnan().tolist() == [False] * 4 + [True] * 4 + [False] * 4
    assert all(reason in one["reason"] for one in scored.diagnostics["told"][4:8])
    assert [count for count, _, _ in reported.shown] == [4, 4, 4], "no group is halved"


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        (lambda media: all_scored(torch.zeros(3)), "values (3,)"),
        (lambda media: [0.0] * 4, "returned list"),
        (lambda media: all_scored(torch.full((4,), 7.0)), "not in the declared range"),
    ],
)
def test_answers_are_checked(answer: Callable[[Tensor], Any], phrase: str) -> None:
    failures: list[str] = []
    found = checked_group(Reward("r", 1.0, Reported(answer)), MEDIA[:4], PROMPTS[0], [(i,) for i in range(4)], failures)
    assert found.missing.all()
    assert phrase in found.diagnostics[0]["reason"]
    assert len(failures) == 1


def test_in_flight_counts_whole_groups(closing: list[Scorer]) -> None:
    """One at work and one that waits: the third group's last member waits for room."""
    go, blocked = threading.Event(), threading.Event()

    def function(media: Tensor) -> Scores:
        assert go.wait(10)
        return all_scored(media.flatten(1).mean(1))

    closing.append(Scorer([Reward("told", 1.0, Reported(function))], None, 1))
    closing[0].expect(layout())

    def interrupt() -> None:
        blocked.set()
        go.set()

    for i in range(TOTAL):
        closing[0].submit(MEDIA[i : i + 1], PROMPTS[i : i + 1], interrupt, [i])
        assert blocked.is_set() == (i == TOTAL - 1)
    assert not closing[0].collect().values["told"].isnan().any()


# -- several processes ------------------------------------------------------------------------------------------------


class Post(Processes):
    """Processes that take turns in one: what is sent lies there until it is fetched."""

    def __init__(self, rank: int, count: int, letters: dict[tuple[int, int], list[Tensor]]) -> None:
        super().__init__(rank, count)
        self.letters = letters

    def send(self, tensor: Tensor, rank: int) -> None:
        self.letters.setdefault((self.rank, rank), []).append(tensor.clone())

    def receive(self, rank: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        found = self.letters[rank, self.rank].pop(0)
        assert (tuple(found.shape), found.dtype) == (tuple(shape), dtype)
        return found


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 12])
def test_only_shared_groups_travel_and_every_group_is_whole_once(count: int) -> None:
    parts = split_samples(GROUPS, MEMBERS, 1, count)
    members = [Members(layout(parts, rank)) for rank in range(count)]
    whole: list[tuple[int, WholeGroup]] = []
    for rank, part in enumerate(parts):
        whole += [(rank, group) for group in members[rank].take(MEDIA[part], [PROMPTS[i] for i in part], part)]
    letters: dict[tuple[int, int], list[Tensor]] = {}
    posts = [Post(rank, count, letters) for rank in range(count)]
    for rank in reversed(range(count)):  # whoever owns a group comes before those that it gets members of
        whole += [(rank, group) for group in members[rank].exchange(posts[rank])]
    assert not any(letters.values())
    assert sorted(group.number for _, group in whole) == list(range(GROUPS))
    for rank, group in whole:
        rows = range(group.number * MEMBERS, (group.number + 1) * MEMBERS)
        assert rows[0] in parts[rank], "the process with member 0 has it"
        assert group.media.equal(MEDIA[rows.start : rows.stop])
        assert group.keys == tuple(DRAWS.at(group.number, m).key for m in range(MEMBERS))
    shared = sum(len({r for r, part in enumerate(parts) if set(part) & set(range(g * 4, g * 4 + 4))}) > 1
                 for g in range(GROUPS))  # fmt: skip
    assert len(members[0].layout.shared) == shared


def test_scores_of_other_processes_samples_find_their_places(closing: list[Scorer]) -> None:
    """What `merged` makes of three processes is what one has."""
    parts = split_samples(GROUPS, MEMBERS, 1, 5)
    letters: dict[tuple[int, int], list[Tensor]] = {}
    scorers = [Scorer([Reward("wins", 1.0, win_rate(opponents=2)), Reward("b", 1.0, Brightness())]) for _ in parts]
    closing += scorers
    for rank, part in enumerate(parts):
        scorers[rank].expect(layout(parts, rank))
        scorers[rank].submit(MEDIA[part], [PROMPTS[i] for i in part], samples=part)
    found = {}
    for rank in reversed(range(len(parts))):
        scorers[rank].complete(Post(rank, 5, letters))
        found[rank] = scorers[rank].collect()

    class Gathered:
        count = 5

        def all_gather_object(self, value: Any) -> list[Any]:
            return [broadcast_object(found[rank]) for rank in range(5)]

        def all_gather_tensors(self, rows: Sequence[Tensor]) -> list[Tensor]:
            return [row for rank in range(5) for row in found[rank].thumbnails]

    def broadcast_object(one: Any) -> Any:
        said: list[Any] = []

        class Listening:
            count = 2

            def all_gather_object(self, value: Any) -> Any:
                said.append(value)
                raise InterruptedError

        with pytest.raises(InterruptedError):
            merged(one, cast(Processes, Listening()), parts)
        return said[0]

    together = merged(found[0], cast(Processes, Gathered()), parts)
    closing.append(Scorer([Reward("wins", 1.0, win_rate(opponents=2)), Reward("b", 1.0, Brightness())]))
    alone = score(closing[-1], 3)
    assert together.values["wins"].equal(alone.values["wins"])
    assert list(together.diagnostics["wins"]) == list(alone.diagnostics["wins"])


# -- runs -------------------------------------------------------------------------------------------------------------


def config(directory: Path, **changes: Any) -> RunConfig:
    data = run_data(directory, rewards=[{"use": "win-rate"}], run={"iterations": 1}, **changes)
    return RunConfig.model_validate(data)


def test_one_sample_of_a_prompt_is_refused_when_the_run_is_built(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match=r"evaluation\.samples_per_prompt: must be at least 2 for the reward win-rate"):
        Trainer(config(tmp_path), registry).train()
    monitors = {"monitors": {"rewards": [{"use": "win-rate"}]}}
    guarded = RunConfig.model_validate(run_data(tmp_path, evaluation=monitors))
    with pytest.raises(UserError, match=r"or remove it from evaluation\.monitors\.rewards"):
        Trainer(guarded, registry).train()
    assert not (tmp_path / "toy").exists()


def test_a_run_is_the_same_at_any_micro_batch(tmp_path: Path, registry: Registry) -> None:
    """In float64, but for the last bits of sums."""
    found = []
    for micro_batch in (3, 16):
        made = config(
            tmp_path / str(micro_batch), evaluation={"samples_per_prompt": 3, "prompts": 3},
            rollout={"micro_batch": micro_batch},
            backbone={"options": {"double": True}},
        )  # fmt: skip
        trainer = Trainer(made, registry)
        trainer.train()
        records = [json.loads(line) for line in (run_path(made) / "metrics.jsonl").read_text().splitlines()]
        scores = (run_path(made) / "scores" / "000001.json").read_text()
        assert records[0]["rewards"]["win-rate"]["std"] > 0.1
        found.append((records[0]["rewards"], scores, dict(trainer.build().policy.parameters)))
    for rewards, scores, weights in found[1:]:
        assert (rewards, scores) == found[0][:2]
        assert all((weights[name] - first).abs().max() < 1e-9 for name, first in found[0][2].items())
