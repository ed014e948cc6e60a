"""Settings of a source of its own: weights of rewards, aggregation, missing scores; its metrics and its alarms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.builtin.weightings import AbsAdvantage
from dgpo_core.contracts import RewardModel
from dgpo_core.data.sources import Source, of_sources
from dgpo_core.distributed.comparing import Layout
from dgpo_core.draws import Draws
from dgpo_core.errors import RunStopped
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.monitors import alarms
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, ScoredGroups, Scores, TrainingBatch
from dgpo_kit.toy import run_data
from dgpo_schemas.metrics import EvaluationRecord
from dgpo_schemas.problems import explain
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.prompts import SourceBlock
from dgpo_schemas.sections.rewards import AdvantagesSection, ScoringSection
from tests.toy_runs import result

CPU = torch.device("cpu")
NAMES = ["x", "y", "x", "y", "x"]
PROMPTS = [Prompt(f"p{i}", source=name) for i, name in enumerate(NAMES)]
MEDIA = torch.rand(20, 3, 2, 2, generator=torch.Generator().manual_seed(2))


class Channel(RewardModel):
    """The mean of one color times a scale."""

    range = (0.0, 1e6)

    def __init__(self, channel: int, scale: float = 1.0) -> None:
        super().__init__(None, device=CPU)
        self.channel, self.scale = channel, scale

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = media[:, self.channel].double().mean((1, 2)) * self.scale
        return Scores(values, values.isnan())


def block(name: str, **more: Any) -> SourceBlock:
    return SourceBlock.model_validate({"source": name, "use": "toy"} | more)


def grouped(
    rewards: Sequence[Reward],
    prompts: Sequence[Prompt] = PROMPTS,
    media: Tensor = MEDIA,
    sources: Sequence[SourceBlock] = (),
    micro_batch: int = 20,
) -> ScoredGroups:
    """The groups of four members each."""
    scorer = Scorer(rewards)
    scorer.expect(Layout(4, Draws(0), [range(len(media))]))
    each = [prompt for prompt in prompts for _ in range(4)]
    for start in range(0, len(media), micro_batch):
        part = slice(start, start + micro_batch)
        scorer.submit(media[part], each[part], samples=range(len(media))[part])
    found = scorer.groups(scorer.collect(), [], prompts, ScoringSection(), 1e-4, sources)
    scorer.close()
    return found


def batch_of(groups: ScoredGroups, std: str = "group") -> TrainingBatch:
    section = AdvantagesSection.model_validate({"std": std})
    return compute_advantages(groups, section, AbsAdvantage(None))


def two(scale: float = 1.0, **weights: dict[str, float]) -> list[Reward]:
    """Red for both sources, green for y alone, times a scale."""
    return [
        Reward("red", 1.0, Channel(0), weights=weights.get("red", {})),
        Reward("green", 2.0, Channel(1, scale), sources=frozenset({"y"}), weights=weights.get("green", {})),
    ]


LEVEL = MEDIA.double().mean((2, 3)).view(5, 4, 3)
X, Y = [0, 2, 4], [1, 3]


def test_weights_of_a_source() -> None:
    rewards = two(red={"x": 0.5}, green={"y": 3.0})
    found = grouped(rewards)
    torch.testing.assert_close(found.rewards[X], 0.5 * LEVEL[X, :, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.rewards[Y], LEVEL[Y, :, 0] + 3 * LEVEL[Y, :, 1], rtol=0, atol=1e-12)
    assert [reward.counts for reward in rewards] == [True, True]
    off = Reward("r", 1.0, Channel(0), weights={"x": 0.0})
    assert (off.weight_in("x"), off.weight_in("y"), off.counts) == (0.0, 1.0, True)


def test_a_reward_without_weight_in_a_source_is_no_part_of_its_samples() -> None:
    class Never(Channel):
        def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            return Scores(torch.zeros(len(media)), torch.ones(len(media), dtype=torch.bool))

    rewards = [Reward("red", 1.0, Channel(0)), Reward("never", 1.0, Never(1), weights={"x": 0.0})]
    found = grouped(rewards)
    assert found.rewards[X].equal(found.per_reward["red"][X])
    assert found.scored.all(1).tolist() == [name == "x" for name in NAMES]


@pytest.mark.parametrize("micro_batch", [1, 3, 20])
def test_aggregation_of_a_source(micro_batch: int) -> None:
    sources = [block("x"), block("y", aggregation="group-normalized")]
    found = grouped(two(), sources=sources, micro_batch=micro_batch)
    torch.testing.assert_close(found.rewards[X], LEVEL[X, :, 0], rtol=0, atol=1e-12)
    for row in Y:
        parts = [(LEVEL[row, :, c] - LEVEL[row, :, c].mean()) for c in (0, 1)]
        normalized = [part / (part.square().mean().sqrt() + 1e-4) for part in parts]
        torch.testing.assert_close(found.rewards[row], normalized[0] + 2 * normalized[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.summed[Y], LEVEL[Y, :, 0] + 2 * LEVEL[Y, :, 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_a_source_has_the_advantages_of_a_run_of_its_own(std: str) -> None:
    sources = [block("x"), block("y", aggregation="group-normalized")]
    whole = batch_of(grouped(two(), sources=sources), std)
    for rows, rewards in ((X, [two()[0]]), (Y, two())):
        prompts = [PROMPTS[row] for row in rows]
        media = MEDIA.view(5, 4, 3, 2, 2)[rows].flatten(0, 1)
        alone = batch_of(grouped(rewards, prompts, media, sources), std)
        torch.testing.assert_close(whole.advantages[rows], alone.advantages, rtol=0, atol=1e-10)
        torch.testing.assert_close(whole.signed_weights[rows], alone.signed_weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_a_scale_of_one_source_leaves_the_other_bit_by_bit(std: str) -> None:
    one, thousand = (batch_of(grouped(two(scale)), std) for scale in (1.0, 1000.0))
    assert one.signed_weights[X].equal(thousand.signed_weights[X])
    assert not one.signed_weights[Y].equal(thousand.signed_weights[Y])


@pytest.mark.parametrize("groups", [3, 4, 6])
def test_three_to_one_is_exact_over_four_iterations(groups: int) -> None:
    sources = [Source(name, weight, [Prompt(f"{name} {k}", source=name) for k in range(5)])
               for name, weight in (("a", 3), ("b", 1))]  # fmt: skip
    for first in (0, 4, 400):
        drawn = [p.source for i in range(first, first + 4) for p in of_sources(sources, i, groups, Draws(1))]
        assert Counter(drawn) == {"a": 3 * groups, "b": groups}


# -- the run file -----------------------------------------------------------------------------------------------------


def data(directory: Path, train: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    rewards = [{"use": "brightness"}, {"use": "brightness", "name": "other", "weight": 0.5}]
    made = run_data(directory, rewards=rewards, rollout={"groups": 4})
    made["prompts"] = {"train": [{"use": "toy", **one} for one in train], "heldout": {"use": "toy"}}
    return made | changes


TWO: list[dict[str, Any]] = [
    {"source": "many", "weight": 3, "rewards": {"brightness": 2.0, "other": 1}, "aggregation": "group-normalized"},
    {"source": "few", "rewards": ["brightness"], "max_missing": 0.5},
]


def test_the_settings_are_read(tmp_path: Path) -> None:
    config = RunConfig.model_validate(data(tmp_path, TWO))
    many, few = config.prompts.sources("train")
    assert [many.weight_of(label, 0.5) for label in ("brightness", "other")] == [2.0, 1.0]
    assert [few.weight_of(label, 0.5) for label in ("brightness", "other")] == [0.5, None]
    assert (many.aggregation, few.aggregation, few.max_missing) == ("group-normalized", None, 0.5)


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("train", {"rewards": {"brightnes": 1}}, "prompts.train.0.rewards.brightnes: unknown reward 'brightnes'"),
        ("train", {"rewards": {"brightness": 0, "other": 0}}, "all of these have weight 0"),
        ("train", {"rewards": {}}, "prompts.train.0.rewards: must have at least 1 entry"),
        ("train", {"rewards": {"brightness": "much"}}, "prompts.train.0.rewards.brightness: "),
        ("train", {"rewards": "brightness"}, "prompts.train.0.rewards: must be a list"),
        ("train", {"aggregation": "sum"}, "prompts.train.0.aggregation: "),
        ("train", {"max_missing": 2}, "prompts.train.0.max_missing: must be at most 1"),
        ("heldout", {"rewards": {"brightness": 1}}, "prompts.heldout.0.rewards: weights have no effect on held-out"),
        ("heldout", {"aggregation": "weighted-sum"}, "prompts.heldout.0.aggregation: has no effect on held-out"),
        ("heldout", {"max_missing": 0.5}, "prompts.heldout.0.max_missing: has no effect on held-out"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, split: str, change: dict[str, Any], message: str) -> None:
    made = data(tmp_path, [{"source": "a"}])
    made["prompts"][split] = [{"source": "a", "use": "toy", **change}]
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(made)
    told = "\n".join(f"{'.'.join(map(str, at))}: {t}" for at, t in explain(RunConfig, made, caught.value))
    assert message in told


# -- runs -------------------------------------------------------------------------------------------------------------


def lines(directory: Path, log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "toy" / log).read_text().splitlines()]


def test_the_metrics_of_a_source(tmp_path: Path, registry: Registry) -> None:
    made = data(tmp_path, TWO)
    made["run"]["iterations"] = 2
    Trainer(RunConfig.model_validate(made), registry).train()
    for line in lines(tmp_path, "metrics.jsonl"):
        many, few = (line["sources"][name] for name in ("many", "few"))
        assert (many["groups"], few["groups"]) == (3, 1)
        assert (set(many["rewards"]), set(few["rewards"])) == ({"brightness", "other"}, {"brightness"})
        both = (3 * many["rewards"]["brightness"]["mean"] + few["rewards"]["brightness"]["mean"]) / 4
        assert both == pytest.approx(line["rewards"]["brightness"]["mean"])
        assert many["mean"] == pytest.approx(3 * many["rewards"]["brightness"]["mean"])
        assert many["loss_weight"] + few["loss_weight"] == pytest.approx(1.0)
        assert 0 < few["loss_weight"] < many["loss_weight"]
        members = {name: one["groups"] - one["zero_variance_groups"] for name, one in line["sources"].items()}
        mean = sum(members[name] * line["sources"][name]["sigmoid"] for name in members) / sum(members.values())
        assert mean == pytest.approx(line["sigmoid"], abs=1e-6)
        assert not any("source" in name for name in line["extra"])


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resume_within_a_cycle_goes_on_with_the_same_sources(
    tmp_path: Path, registry: Registry, stop_after: int
) -> None:
    """Three to one with two groups an iteration: a cycle is two iterations."""
    found = []
    for name, stops in (("whole", []), ("parts", [stop_after])):
        made = data(tmp_path / name, TWO, rollout={**data(tmp_path, TWO)["rollout"], "groups": 2})
        config = RunConfig.model_validate(made)
        for stop in stops:
            Trainer(config, registry).train(max_iterations=stop)
        Trainer(config, registry).train(resume=bool(stops))
        found.append(result(tmp_path / name / "toy"))
    assert found[0] == found[1]


def dark(limit: float | None) -> list[dict[str, Any]]:
    return [
        {"source": "many", "weight": 3, "rewards": ["brightness"]},
        {"source": "few", "rewards": ["dim"]} | ({} if limit is None else {"max_missing": limit}),
    ]


@pytest.mark.parametrize(
    ("limit", "total", "message"),
    [
        (
            None,
            0.9,
            r"100% of the scores of the source few in iteration 1 are missing \(limit scoring.max_missing = 0.9\)",
        ),
        (0.25, 1.0, r"source few in iteration 1 are missing \(limit prompts.train.1.max_missing = 0.25\)"),
        (1.0, 0.2, ""),
    ],
)
def test_missing_scores_of_a_source(
    tmp_path: Path, registry: Registry, limit: float | None, total: float, message: str
) -> None:
    """Every score of one of four groups is missing: a quarter of all."""
    made = data(tmp_path, dark(limit), scoring={"max_missing": total})
    made["rewards"] = [{"use": "brightness"}, {"use": "brightness", "name": "dim", "options": {"fail": "raise"}}]
    made["evaluation"] = {"rewards": [{"use": "brightness"}]}
    made["run"]["iterations"] = 1
    trainer = Trainer(RunConfig.model_validate(made), registry)
    if not message:
        assert trainer.train() == "finished"
        return
    with pytest.raises(RunStopped, match=message) as caught:
        trainer.train()
    assert "the lamp is broken" in str(caught.value)


# -- alarms -----------------------------------------------------------------------------------------------------------


def record(iteration: int, reward: str, role: str, value: float, sources: dict[str, float]) -> dict[str, Any]:
    def score(value: float) -> dict[str, Any]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 9}

    made = {"iteration": iteration, "model": "ema", "reward": reward, "role": role, "missing": 0, "groups": {}}
    made |= score(value) | {"sources": {name: score(one) for name, one in sources.items()}}
    return EvaluationRecord.model_validate(made).model_dump(mode="json")


def test_a_source_raises_an_alarm_of_its_own() -> None:
    """The first target rises nowhere; the second, of another source, at the cost of the monitor there."""
    found = alarms(
        [
            record(0, "shapes", "target", 0.5, {"a": 0.5}),
            record(0, "signs", "target", 0.5, {"b": 0.5}),
            record(0, "taste", "monitor", 5.0, {"a": 5.0, "b": 5.0}),
            record(9, "shapes", "target", 0.5, {"a": 0.5}),
            record(9, "signs", "target", 0.8, {"b": 0.8}),
            record(9, "taste", "monitor", 4.8, {"a": 5.0, "b": 4.6}),
        ],
        {},
    )
    (alarm,) = found
    assert (alarm.source, alarm.target, alarm.monitor) == ("b", "signs", "taste")
    assert (alarm.target_change, alarm.monitor_change) == ((0.5, 0.8), (5.0, 4.6))
    assert "iteration 9: source b: signs rose from 0.500 to 0.800 while taste fell" in str(alarm)


def test_tolerances_hold_in_every_source() -> None:
    both = [
        record(i, name, role, value, {"a": value, "b": value})
        for i, values in ((0, (0.5, 5.0)), (9, (0.7, 4.8)))
        for name, role, value in zip(("target", "taste"), ("target", "monitor"), values, strict=True)
    ]
    assert [alarm.source for alarm in alarms(both, {})] == ["", "a", "b"]
    assert alarms(both, {"taste": 0.3}) == []
