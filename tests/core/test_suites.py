"""Suites: what they aggregate, and the intervals of it, against other computations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.api.suites import open_suite, suite_record
from dgpo_core.contracts import RewardModel, task_means
from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.suites import RESAMPLES, measured, resampled_scores, suite_scores, with_intervals
from dgpo_core.types import Prompt, Scores
from dgpo_kit.contracts import component_checks
from dgpo_schemas.base import UseBlock
from dgpo_schemas.sections.rewards import RewardBlock
from tests.suited import SuitePlugin, ToySuite, ToySuiteOptions

NAN = math.nan


@pytest.fixture
def suites(registry: Registry) -> Registry:
    registry.register(SuitePlugin(), distribution="toy-suite", version="1.5")
    return registry


class Judge(RewardModel):
    range = (0.0, 1.0)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        raise NotImplementedError

    def provenance(self) -> Mapping[str, Any]:
        return {"model": "lamp", "revision": "3"}


JUDGE = Judge(None, device=torch.device("cpu"))


def answers(*values: float | None) -> list[dict[str, dict[str, Any]]]:
    return [{"light": {"value": value}} for value in values]


def test_means_of_tasks_are_over_the_scored_samples() -> None:
    values = torch.tensor([[1, 0], [1, 1], [NAN, 0], [NAN, NAN]], dtype=torch.float64)
    found = task_means(values, ["a", "b", "a", "c"])
    assert (found["a"], found["b"]) == (1 / 3, 1.0)
    assert math.isnan(found["c"])


def test_the_numbers_of_samples_are_put_in_their_places() -> None:
    suite = ToySuite(ToySuiteOptions(count=3))
    values = measured(suite, suite.prompts(), answers(0.0, 0.25, None, 0.5, 0.75, 1.0))
    expected = torch.tensor([[0.0, 0.25], [NAN, 0.5], [0.75, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(values["light"], expected, equal_nan=True, rtol=0, atol=0)


def test_a_measure_that_some_samples_lack_is_missing_there() -> None:
    class Some(ToySuite):
        def measure(self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Any) -> Mapping[str, float]:
            return {"light": scores["light"]} if scores["light"] > 0.5 else {"dark": 1.0}

    suite = Some(ToySuiteOptions(count=1))
    values = measured(suite, suite.prompts(), answers(0.75, 0.25))
    assert values["light"].tolist()[0][0] == 0.75
    assert math.isnan(values["light"].tolist()[0][1])
    assert values["dark"].tolist()[0][1] == 1.0


def test_intervals_are_those_of_another_bootstrap() -> None:
    """Of 300 prompts in three tasks of different spread: against the normal interval of a stratified mean."""
    suite = ToySuite(ToySuiteOptions(count=300))
    generator = np.random.default_rng(3)
    per_prompt = np.array([generator.normal(0.5, 0.05 * (1 + i % 3)) for i in range(300)])
    values = {"light": torch.tensor(np.stack([per_prompt, per_prompt], 1))}
    prompts = suite.prompts()
    resampled = resampled_scores(suite, values, prompts)
    scores = with_intervals(suite_scores(suite, values, prompts), resampled)
    tasks = [per_prompt[k::3] for k in range(3)]
    error = math.sqrt(sum(task.var() / len(task) for task in tasks)) / 3
    found = scores["overall"]
    assert found.value == pytest.approx(np.mean([task.mean() for task in tasks]), abs=1e-12)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.25 * error)
    one = scores["three"]
    assert one.high is not None
    assert one.low is not None
    assert (one.high - one.low) / 2 == pytest.approx(1.96 * tasks[2].std() / 10, rel=0.1)


def test_models_with_the_same_prompts_have_the_same_resamples() -> None:
    suite = ToySuite(ToySuiteOptions(count=30))
    light = torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = (resampled_scores(suite, {"light": light + more}, suite.prompts())["overall"] for more in (0.0, 0.125))
    np.testing.assert_allclose(other - one, 0.125, atol=1e-12)
    assert one.std() > 0.01


def test_a_task_without_scores_has_none_and_neither_has_the_total() -> None:
    suite = ToySuite(ToySuiteOptions(count=6))
    values = {"light": torch.full((6, 2), 0.5, dtype=torch.float64)}
    values["light"][2::3] = NAN
    scores = with_intervals(
        suite_scores(suite, values, suite.prompts()), resampled_scores(suite, values, suite.prompts(), 20)
    )
    assert (scores["three"].value, scores["three"].low, scores["overall"].value) == (None, None, None)
    assert scores["one"].value == 0.5


def test_what_is_no_number_is_the_suites_fault() -> None:
    class Odd(ToySuite):
        def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> Any:
            return {"overall": "good"}

    suite = Odd(ToySuiteOptions())
    with pytest.raises(PluginError, match=r"suite Odd: aggregate must return numbers by name, got \{'overall': 'good'"):
        suite_scores(suite, {}, suite.prompts())


def test_a_record_says_what_the_scores_depend_on(suites: Registry) -> None:
    opened = open_suite(UseBlock(use="toy-suite", options={"count": 3}), suites)
    samples = answers(0.0, 0.5, 1.0, 0.5, None, 0.25)
    record = suite_record(opened, samples, {"light": JUDGE}, target="files")
    assert (record.suite, record.distribution) == ("toy-suite", "toy-suite 1.5")
    assert record.options == {"count": 3, "scale": 1.0, "fail": None, "published": None}
    assert record.rewards["light"].model_dump() == {
        "use": "brightness", "options": {"scale": 1.0, "fail": "never"},
        "provenance": {"model": "lamp", "revision": "3"}, "missing": 1,
    }  # fmt: skip
    assert [record.scores[name].value for name in record.scores] == [1.25 / 3, 0.25, 0.75, 0.25]
    assert record.not_comparable == ["1 of 6 samples have no score of light"]
    assert len(record.resampled["overall"]) == RESAMPLES


def test_samples_of_which_the_suite_makes_no_number_are_missing(
    suites: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reward gave a score, but not what the suite reads from its diagnostics."""

    def measure(self: ToySuite, prompt: Prompt, scores: Any, diagnostics: Any) -> dict[str, float]:
        return {"light": diagnostics["light"].get("read", NAN)}

    monkeypatch.setattr(ToySuite, "measure", measure)
    opened = open_suite(UseBlock(use="toy-suite", options={"count": 3}), suites)
    samples = [{"light": {"value": v, **more}} for v, more in ((1.0, {"read": 0.5}), (0.5, {}), (None, {}))] * 2
    record = suite_record(opened, samples, {"light": JUDGE}, target="files", resamples=5)
    assert record.rewards["light"].missing == 4
    assert record.not_comparable == ["4 of 6 samples have no score of light"]


def test_weights_have_no_effect_and_are_refused(suites: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySuite, "rewards", lambda self: [RewardBlock(use="brightness", name="light", weight=2.0)])
    with pytest.raises(UserError, match=r"suite toy-suite: reward light: a suite aggregates .*; remove `weight`"):
        open_suite(UseBlock(use="toy-suite"), suites)


def test_what_differs_from_the_protocol_is_said(suites: Registry) -> None:
    options = {"count": 30, "scale": 0.5, "published": "1" * 64}
    opened = open_suite(UseBlock(use="toy-suite", options=options), suites, limit=2)
    learned = [Prompt(opened.prompts[0].text.upper())]
    record = suite_record(opened, answers(0.0, 1.0), {"light": JUDGE}, target="files", learned=learned)
    assert record.not_comparable == [
        "toy.txt is not the published file (SHA-256 000000000000…, published 111111111111…)",
        "only 2 of its prompts were used",
        "1 samples per prompt instead of 2",
        "1 of its prompts are training prompts of the run",
        "the scale of brightness is not 1",
    ]


def test_wrong_options_of_its_reward_are_reported(suites: Registry) -> None:
    with pytest.raises(Exception, match=r"suite toy-suite: .*options\.fail"):
        open_suite(UseBlock(use="toy-suite", options={"fail": "sometimes"}), suites)


def test_a_suite_without_prompts_is_refused(suites: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToySuite, "prompts", lambda self: [])
    with pytest.raises(UserError, match="suite toy-suite has no prompts"):
        open_suite(UseBlock(use="toy-suite"), suites)


def test_the_toy_suite_keeps_its_contract(suites: Registry) -> None:
    checks = list(component_checks(suites, "suite", "toy-suite"))
    assert "aggregation" in {check.name for check in checks}
    for check in checks:
        check.run()
