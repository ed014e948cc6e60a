"""The rank transform of rewards, against scipy's ranks: ties, missing members, sources, micro-batches."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import rankdata
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.contracts.suite import Suite
from dgpo_core.data.checks import check_suite
from dgpo_core.distributed.comparing import Layout
from dgpo_core.distributed.processes import Processes
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.groups import advantages, aggregate, ranks
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Prompt, ScoredGroups, Scores
from dgpo_kit.toy import WinRate, WinRateOptions, run_data
from dgpo_schemas.problems import explain
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.prompts import SourceBlock
from dgpo_schemas.sections.rewards import AdvantagesSection, RewardBlock, ScoringSection

CPU = torch.device("cpu")
NAN = math.nan
FEW = st.sampled_from([-1e99, -2.0, -0.0, 0.0, 0.1, 0.30000000000000004, 0.3, 7.0, NAN, math.inf])
"""Values that tie often; the last two are not scored."""


def made(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def published(values: Tensor, scored: Tensor) -> Tensor:
    """(r - 1) / n of each group [g, G] by scipy's average ranks."""
    found = torch.zeros_like(values)
    for row, kept in enumerate(scored):
        if kept.any():
            members = torch.from_numpy(rankdata(values[row, kept].numpy(), method="average"))
            found[row, kept] = (members - 1) / int(kept.sum())
    return found


def test_a_worked_example() -> None:
    """Two at the bottom share ranks 1 and 2; the missing one is none of the four."""
    found = ranks(made([[5.0, 9.0, NAN, 5.0, 30.0]]), torch.tensor([[True, True, False, True, True]]))
    assert found.tolist() == [[0.125, 0.5, 0.0, 0.125, 0.75]]


@given(st.lists(FEW, min_size=1, max_size=24))
def test_ranks_are_scipy_s(values: list[float]) -> None:
    reward = made([values])
    total, scored = aggregate(reward[None], [1.0], "weighted-sum", 0.0, ["rank"])
    assert scored.tolist() == [[math.isfinite(value) for value in values]]
    assert total.equal(published(reward, scored))
    assert 0 <= total.min() <= total.max() < 1


@given(st.lists(FEW, min_size=2, max_size=12), st.randoms())
def test_permuting_members_permutes_ranks(values: list[float], rng: Any) -> None:
    """To the bit, so the order in which a group was drawn decides nothing."""
    order = rng.sample(range(len(values)), len(values))
    total, _ = aggregate(made([values])[None], [1.0], "weighted-sum", 0.0, ["rank"])
    permuted, _ = aggregate(made([values])[None][..., order], [1.0], "weighted-sum", 0.0, ["rank"])
    assert permuted.equal(total[:, order])


@given(st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=12))
def test_only_the_order_counts(values: list[float]) -> None:
    reward = made([values])
    scored = torch.ones_like(reward, dtype=torch.bool)
    assert ranks(reward, scored).equal(ranks(reward**3 * 1e-3 + reward, scored))
    assert (ranks(reward, scored) + ranks(-reward, scored)).allclose(made([[1 - 1 / len(values)]]))


def test_it_is_applied_to_the_chosen_reward_before_the_sum() -> None:
    """A member that lacks another reward is no member of this one's ranks; other groups change nothing."""
    draws = torch.Generator().manual_seed(4)
    values = torch.randn(3, 9, 6, generator=draws, dtype=torch.float64).round(decimals=1)
    values[torch.rand(values.shape, generator=draws) < 0.15] = NAN
    weights = [2.0, -0.5, 10.0]
    scored = ~values.isnan().any(0)
    assert not scored.all()
    ranked, plain = published(values[0], scored), values.nan_to_num()
    total, found = aggregate(values, weights, "weighted-sum", 1e-4, ["rank", None, None])
    assert found.equal(scored)
    expected = (2 * ranked - 0.5 * plain[1] + 10 * plain[2]).masked_fill(~scored, 0)
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-12)
    normalized, _ = aggregate(values, weights, "group-normalized", 1e-4, ["rank", None, None])
    by_hand, _ = aggregate(
        torch.stack([ranked.masked_fill(~scored, NAN), *values[1:]]), weights, "group-normalized", 1e-4
    )
    torch.testing.assert_close(normalized, by_hand, rtol=0, atol=1e-12)
    one, _ = aggregate(values[:, 3:4], weights, "weighted-sum", 1e-4, ["rank", None, None])
    assert one.equal(total[3:4])


def test_without_transforms_sums_are_bit_identical() -> None:
    values = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for how in ("weighted-sum", "group-normalized"):
        plain, _ = aggregate(values, [0.3, 1.7], how, 1e-4)
        assert plain.equal(aggregate(values, [0.3, 1.7], how, 1e-4, [None, None])[0])


def test_a_group_of_equals_gives_no_advantage() -> None:
    total, scored = aggregate(made([[0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2]])[None], [0.7], "weighted-sum", 0.0, ["rank"])
    assert advantages(total, scored, AdvantagesSection()).tolist() == [[0.0, 0.0, 0.0]]


# -- scoring ----------------------------------------------------------------------------------------------------------

GROUPS, MEMBERS = 4, 3
PROMPTS = [Prompt(f"p{i}", source="xy"[i % 2]) for i in range(GROUPS)]
EACH = [prompt for prompt in PROMPTS for _ in range(MEMBERS)]
MEDIA = (torch.rand(GROUPS * MEMBERS, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * 4).round() / 4
LEVELS = MEDIA.double().mean((2, 3)).view(GROUPS, MEMBERS, 3)


class Channel(RewardModel):
    """The mean of one color, missing where it is the third member of the second group and the color is red."""

    range = (0.0, 1.0)

    def __init__(self, channel: int) -> None:
        super().__init__(None, device=CPU)
        self.channel = channel

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = media[:, self.channel].mean((1, 2))
        lost = [not self.channel and bool(image.equal(MEDIA[5])) for image in media]
        return Scores(values, torch.tensor(lost))


def rewards() -> list[Reward]:
    """Ranked red for all, green for y, ranked win rates for all."""
    return [
        Reward("red", 1.0, Channel(0), transform="rank"),
        Reward("green", 2.0, Channel(1), sources=frozenset("y")),
        Reward("wins", 0.5, WinRate(WinRateOptions(), device=CPU), transform="rank"),
    ]


def grouped(micro_batch: int) -> ScoredGroups:
    scorer = Scorer(rewards())
    scorer.expect(Layout(MEMBERS, Draws(0), [range(len(MEDIA))]))
    for start in range(0, len(MEDIA), micro_batch):
        rows = range(len(MEDIA))[start : start + micro_batch]
        scorer.submit(MEDIA[rows.start : rows.stop], EACH[rows.start : rows.stop], samples=rows)
    scorer.complete(Processes())
    sources = [SourceBlock(source=name, file="p.txt") for name in "xy"]
    found = scorer.groups(scorer.collect(), [], PROMPTS, ScoringSection(), 1e-4, sources)
    scorer.close()
    return found


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_ranks_of_sources_and_of_rewards_that_compare(micro_batch: int) -> None:
    found = grouped(micro_batch)
    scored = torch.ones(GROUPS, MEMBERS, dtype=torch.bool)
    scored[1, 2] = False
    assert found.scored.equal(scored)
    wins = found.per_reward["wins"]
    expected = published(LEVELS[..., 0], scored) + 0.5 * published(wins, scored)
    expected[1::2] += 2 * LEVELS[1::2, :, 1]
    torch.testing.assert_close(found.rewards, expected.masked_fill(~scored, 0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.per_reward["red"][scored], LEVELS[..., 0][scored], rtol=0, atol=0)
    raw = LEVELS[..., 0] + 0.5 * wins
    raw[1::2] += 2 * LEVELS[1::2, :, 1]
    torch.testing.assert_close(found.summed, raw.masked_fill(~scored, NAN), rtol=0, atol=1e-12, equal_nan=True)


# -- runs -------------------------------------------------------------------------------------------------------------


def run_of(directory: Path, **changes: Any) -> RunConfig:
    block = {"use": "brightness", "transform": "rank"}
    return RunConfig.model_validate(run_data(directory, **({"rewards": [block], "run": {"iterations": 2}} | changes)))


def logs(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_path(config) / "metrics.jsonl").read_text().splitlines()]


def test_metrics_report_the_raw_reward(tmp_path: Path, registry: Registry) -> None:
    """The first iteration draws the same samples with and without ranks; what is learned from them differs."""
    ranked, plain = run_of(tmp_path / "ranked"), run_of(tmp_path / "plain", rewards=[{"use": "brightness"}])
    for config in (ranked, plain):
        Trainer(config, registry).train()
    first, other = logs(ranked), logs(plain)
    for key in ("reward", "rewards"):
        assert first[0][key] == other[0][key]
    assert first[1]["reward"] != other[1]["reward"]


def test_a_run_is_the_same_at_any_micro_batch(tmp_path: Path, registry: Registry) -> None:
    found = []
    for size in (3, 16):
        config = run_of(
            tmp_path / str(size), rollout={"micro_batch": size}, backbone={"options": {"double": True}},
            rewards=[{"use": "brightness", "transform": "rank"}, {"use": "win-rate", "transform": "rank"}],
            evaluation={"samples_per_prompt": 3, "prompts": 3},
        )  # fmt: skip
        trainer = Trainer(config, registry)
        trainer.train()
        found.append(dict(trainer.build().policy.parameters))
    assert all((found[1][name] - first).abs().max() < 1e-9 for name, first in found[0].items())


def test_a_resumed_run_keeps_its_transform(tmp_path: Path, registry: Registry) -> None:
    Trainer(run_of(tmp_path), registry).train()
    with pytest.raises(UserError, match=r"rewards\.0\.transform: 'rank' when it started, null now"):
        Trainer(run_of(tmp_path, rewards=[{"use": "brightness"}]), registry).train(resume="auto")


def test_a_model_is_shared_by_labels_with_and_without_ranks(tmp_path: Path, registry: Registry) -> None:
    blocks = [{"use": "brightness"}, {"use": "brightness", "name": "order", "transform": "rank"}]
    engine = Trainer(run_of(tmp_path, rewards=blocks), registry).build()
    plain, ranked = engine.scorer.rewards
    assert plain.model is ranked.model
    assert (plain.transform, ranked.transform) == (None, "rank")


@pytest.mark.parametrize("where", ["rewards", "monitors"])
def test_evaluations_take_no_transform(tmp_path: Path, where: str) -> None:
    """They combine nothing, so the key could only mislead."""
    block = [{"use": "brightness", "name": "more", "transform": "rank"}]
    evaluation = {"rewards": block} if where == "rewards" else {"monitors": {"rewards": block}}
    data = run_data(tmp_path, evaluation=evaluation)
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(data)
    keys = ("rewards",) if where == "rewards" else ("monitors", "rewards")
    message = "has no effect here: an evaluation reports each reward by itself; remove this key"
    assert explain(RunConfig, data, caught.value) == [(("evaluation", *keys, 0, "transform"), message)]


def test_suites_take_no_transform() -> None:
    block = RewardBlock(use="brightness", transform="rank")
    suite = cast(Suite, SimpleNamespace(prompts=lambda: [Prompt("a")], rewards=lambda: [block]))
    with pytest.raises(UserError, match="suite x: reward brightness: a suite aggregates scores by itself; remove `tr"):
        check_suite(suite, "suite x")


def test_other_transforms_are_refused() -> None:
    with pytest.raises(ValidationError, match="'rank'"):
        RewardBlock(use="brightness", transform="median")
