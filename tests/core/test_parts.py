"""Subscores in the diagnostics of a reward: checked, logged as means, and in evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.draws import Draws
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.evaluation_records import evaluation_record
from dgpo_core.training.metrics import _statistics
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.training.scored import ScoredSamples, reasons_of
from dgpo_core.training.scores import subscore_values
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import run_data
from dgpo_schemas.metrics import EvaluationRecord, RewardStatistics
from dgpo_schemas.run import RunConfig


class Says(RewardModel):
    """Gives each sample the diagnostics that it is told."""

    range = (0.0, 1.0)

    def __init__(self, *said: Any) -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.said = said

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return Scores(torch.full((len(media),), 0.5), torch.zeros(len(media), dtype=torch.bool), self.said)


def asked(*said: Any) -> tuple[Scores, list[str]]:
    failures: list[str] = []
    prompts = [Prompt("a")] * len(said)
    return checked_score(Reward("r", 1.0, Says(*said)), torch.zeros(len(said), 3, 2, 2), prompts, failures), failures


@pytest.mark.parametrize(
    ("subscores", "wrong"),
    [
        ([1, 2], "its `subscores` are list, not a mapping of names to numbers"),
        ("x", "its `subscores` are str"),
        ({"a b": 1.0}, "the name 'a b' in its `subscores`"),
        ({"": 1.0}, "the name '' in its `subscores`"),
        ({"a": "1"}, "the value of 'a' in its `subscores` is not a finite number"),
        ({"a": True}, "the value of 'a'"),
        ({"a": math.nan}, "the value of 'a'"),
        ({"a": -math.inf}, "the value of 'a'"),
        ({"a": {"b": 1}}, "the value of 'a'"),
        ({"a": 2**1024 - 1}, "the value of 'a' in its `subscores` is beyond 1e+100"),
        ({"a": 1e308}, "the value of 'a' in its `subscores` is beyond 1e+100"),
        ({"a\n": 1.0}, "the name 'a\\n' in its `subscores`"),
        ({f"p{i}": 1.0 for i in range(101)}, "it has 101 `subscores`, more than 100"),
    ],
)
def test_invalid_subscores_are_dropped_and_the_score_stays(subscores: Any, wrong: str) -> None:
    scores, failures = asked({"subscores": subscores, "seen": 1}, {"subscores": {"a": 2, "b.c-d_E": torch.tensor(0.5)}})
    assert not scores.missing.any()
    assert scores.diagnostics == ({"seen": 1}, {"subscores": {"a": 2, "b.c-d_E": 0.5}})
    assert len(failures) == 1
    assert wrong in failures[0]


def test_subscores_under_their_old_key_are_reported() -> None:
    """A reward may use that name for something of its own."""
    scores, failures = asked({"parts": {"a": 0.5}}, {"parts": {"a": 1.0}})
    assert scores.diagnostics == ({"parts": {"a": 0.5}}, {"parts": {"a": 1.0}})
    (failure,) = failures
    assert "subscores under 'parts', which is called 'subscores' since version 3 of the plugin contract" in failure
    for own in (["wheel"], {}, {"wheel": "red"}, 3):
        assert asked({"parts": own}, {})[1] == []
    assert asked({"parts": {"a": 1}, "subscores": {"a": 1}}, {})[1] == []


def test_means_are_over_scored_samples_that_have_the_component() -> None:
    values = torch.tensor([0.5, math.nan, 0.25, 1.0, 0.0], dtype=torch.float64)
    said = (
        {"subscores": {"b": 1, "a": 0.25}},
        {"subscores": {"a": 100.0}},
        {},
        {"subscores": {"a": 0.5}},
        {"subscores": None},
    )
    subscores = subscore_values(said, values)
    assert list(subscores) == ["a", "b"]
    found = _statistics(values, subscores)
    assert found.subscores == {"a": (0.25 + 0.5) / 2, "b": 1.0}
    assert json.loads(found.model_dump_json())["subscores"] == found.subscores
    assert _statistics(values, subscore_values(({},) * 5, values)).subscores == {}


def test_a_name_for_each_sample_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    subscores = subscore_values([{"subscores": {f"p{i:03}": 1.0}} for i in range(150)], torch.zeros(150))
    assert list(subscores) == [f"p{i:03}" for i in range(100)]
    assert "150 different `subscores`, p000 and so on: the first 100 are kept" in caplog.text


def test_records_without_subscores_are_unchanged() -> None:
    bare = RewardStatistics(mean=0.5, std=0.0, missing=0)
    assert bare.model_dump_json() == '{"mean":0.5,"std":0.0,"missing":0}'
    assert RewardStatistics.model_validate_json(bare.model_dump_json()) == bare


def test_evaluations_weight_subscores_like_scores() -> None:
    """The unweighted mean of the tasks' means over prompts."""
    values = torch.tensor([[0.0, 1.0], [0.5, math.nan], [1.0, 1.0]], dtype=torch.float64)
    subscore = torch.tensor([[2.0, 4.0], [6.0, math.nan], [math.nan, math.nan]], dtype=torch.float64)
    prompts = [Prompt("a", {"tag": "x"}), Prompt("b", {"tag": "x"}), Prompt("c", {"tag": "y"})]
    common: Any = {"prompts": prompts, "draws": Draws(0), "iteration": 0, "model": "ema", "group_by": "tag"}
    found = evaluation_record(
        "r", "target", values, subscores={"p": subscore, "q": 10 * values, "none": subscore * math.nan}, **common
    )
    assert found.value == pytest.approx(((0.5 + 0.5) / 2 + 1.0) / 2)
    assert found.subscores == {"p": pytest.approx((3.0 + 6.0) / 2), "q": pytest.approx(10 * found.value)}
    assert "subscores" not in evaluation_record("r", "target", values, **common).model_dump()
    assert EvaluationRecord.model_validate(found.model_dump()) == found


def test_a_run_logs_them(tmp_path: Path, registry: Registry) -> None:
    data = run_data(tmp_path, rewards=[{"use": "brightness"}, {"use": "win-rate", "name": "wins"}])
    data["evaluation"] |= {"samples_per_prompt": 2, "prompts": 2}
    data["run"]["iterations"] = 1
    Trainer(RunConfig.model_validate(data), registry).train()
    line = json.loads((tmp_path / "toy" / "metrics.jsonl").read_text())
    assert "subscores" not in line["rewards"]["brightness"]
    assert line["rewards"]["wins"]["subscores"]["brightness"] == pytest.approx(line["rewards"]["brightness"]["mean"])
    records = [json.loads(text) for text in (tmp_path / "toy" / "evaluations.jsonl").read_text().splitlines()]
    for iteration in (0, 1):
        mean, wins = (
            next(one for one in records if (one["iteration"], one["reward"]) == (iteration, label))
            for label in ("brightness", "wins")
        )
        plain = sum(group["value"] * group["n"] for group in mean["groups"].values()) / mean["n"]
        assert wins["subscores"]["brightness"] == pytest.approx(plain)


def test_the_reason_of_a_reward_is_reported_where_nothing_was_scored() -> None:
    said = {"reason": "no \x1b[31mface\n" * 100}
    scored = ScoredSamples({"r": torch.tensor([math.nan])}, {"r": [said]}, [], {}, {})
    reported = reasons_of([Reward("r", 1.0, Says())], scored)
    assert reported.startswith(r"r: no \x1b[31mface\n")
    assert len(reported) < 500
