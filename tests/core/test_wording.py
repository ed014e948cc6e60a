"""The monitor of wording: the same held-out prompts in other words, from the same noise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dgpo_core.api import target as targets
from dgpo_core.api.evaluating import evaluate
from dgpo_core.data.wording import reworded_prompts
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt
from dgpo_kit.toy import ToyPrompts, run_data
from dgpo_schemas.problems import explain
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.evaluation import WordingSection

TEXTS = [f"heldout picture {i}" for i in range(6)]


def write(directory: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path = directory / "reworded.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def rows(numbers: Sequence[int] = range(6)) -> list[dict[str, Any]]:
    return [{"prompt": TEXTS[i], "reworded": f"the picture of number {i}"} for i in numbers]


def config(directory: Path, **changes: Any) -> RunConfig:
    section = {"every": 2, "prompts": 6, "samples_per_prompt": 2, "images": 0}
    return RunConfig.model_validate(run_data(directory / "runs", evaluation=section | changes))


@pytest.fixture
def evaluator(tmp_path: Path, registry: Registry) -> Any:
    """That of a toy run, without other words."""
    trainer = Trainer(config(tmp_path), registry)
    yield trainer.build().evaluator
    trainer.close()


def values(found: Any, prompts: Sequence[int], members: int = 2) -> list[float]:
    lines = [found.samples[i * members + k] for i in prompts for k in range(members)]
    return [line["brightness"]["value"] for line in lines]


def test_the_same_words_have_the_same_scores_and_no_gap(evaluator: Any) -> None:
    """Of the second and the fifth prompt alone, so that places in the noise's keys are not those in the batch."""
    chosen = {1: evaluator.prompts[1], 4: evaluator.prompts[4]}
    plain = evaluator.evaluate("policy", 0)
    found = dataclasses.replace(evaluator, reworded=chosen).evaluate("policy", 0)
    by_name = {record.reward: record for record in found.records}
    mine = values(plain, [1, 4])
    assert by_name["reworded.brightness"].value == pytest.approx(sum(mine) / 4, abs=1e-12)
    gap = by_name["wording_gap.brightness"]
    assert (gap.value, gap.low, gap.high, gap.n, gap.role) == (0.0, 0.0, 0.0, 2, "monitor")
    assert [r for r in found.records if r.reward in {p.reward for p in plain.records}] == plain.records
    assert found.samples == plain.samples


@pytest.mark.parametrize("micro_batch", [1, 5, 12])
def test_other_words_are_those_of_an_evaluation_of_them(evaluator: Any, micro_batch: int) -> None:
    other = {i: dataclasses.replace(evaluator.prompts[i], text=f"number {i}, painted") for i in (0, 3, 5)}
    prompts = [other.get(i, prompt) for i, prompt in enumerate(evaluator.prompts)]
    expected = values(dataclasses.replace(evaluator, prompts=prompts).evaluate("policy", 0), [0, 3, 5])
    own = values(evaluator.evaluate("policy", 0), [0, 3, 5])
    evaluator.rollout_sampler.micro_batch = micro_batch
    found = dataclasses.replace(evaluator, reworded=other).evaluate("policy", 0)
    by_name = {record.reward: record.value for record in found.records}
    assert by_name["reworded.brightness"] == pytest.approx(sum(expected) / 6, abs=1e-6)
    assert by_name["wording_gap.brightness"] == pytest.approx((sum(expected) - sum(own)) / 6, abs=1e-6)
    assert expected != own


def test_prompts_of_sources_that_a_reward_does_not_score_are_not_missing(evaluator: Any) -> None:
    """The other words are of both sources, the reward is of one of them: of the second, fourth and sixth prompt."""
    sourced = [dataclasses.replace(prompt, source="xy"[i % 2]) for i, prompt in enumerate(evaluator.prompts)]
    (reward,) = evaluator.scorer.rewards
    object.__setattr__(reward, "sources", frozenset("y"))
    found = dataclasses.replace(evaluator, prompts=sourced, reworded=dict(enumerate(sourced))).evaluate("policy", 0)
    by_name = {record.reward: record for record in found.records}
    for name, samples in (("brightness", 6), ("reworded.brightness", 6), ("wording_gap.brightness", 3)):
        assert (by_name[name].n, by_name[name].missing) == (3, 0), (name, samples)
    assert by_name["reworded.brightness"].value == pytest.approx(by_name["brightness"].value, abs=1e-12)
    assert by_name["wording_gap.brightness"].value == 0.0


def test_a_run_logs_it_and_an_evaluation_repeats_it(tmp_path: Path, known: Registry) -> None:
    path = write(tmp_path, rows([0, 2, 4]))
    monitors = {"wording": str(path), "tolerances": {"wording_gap.brightness": 0.5, "reworded.brightness": 0.1}}
    made = config(tmp_path, monitors=monitors)
    Trainer(made, known).train()
    lines = [json.loads(line) for line in (tmp_path / "runs/toy/evaluations.jsonl").read_text().splitlines()]
    logged = {(line["iteration"], line["reward"]): line for line in lines}
    for iteration in (0, 2, 4):
        assert logged[iteration, "reworded.brightness"]["n"] == 3
        assert logged[iteration, "wording_gap.brightness"]["role"] == "monitor"
    assert next(line["reward"] for line in lines if line["iteration"] == 4) == "brightness", "the target comes first"
    opened = targets.open_target(tmp_path / "runs/toy", on_message=print)
    found = evaluate(opened, [], on_message=print)
    opened.engine.close()
    assert [record.model_dump(mode="json") for record in found.records] == [
        line for line in lines if line["iteration"] == 4
    ]


@pytest.fixture
def prompts() -> list[Prompt]:
    return [Prompt(text, {"tag": "even"}, source="s", size=(8, 8)) for text in TEXTS]


def test_words_of_a_file_replace_the_text_alone(tmp_path: Path, registry: Registry, prompts: list[Prompt]) -> None:
    path = write(
        tmp_path, [*rows([1, 5]), {"prompt": "of no run", "reworded": "x"}, {"prompt": TEXTS[2], "reworded": TEXTS[2]}]
    )
    found = reworded_prompts(WordingSection(file=str(path)), prompts, registry)
    assert found == {i: dataclasses.replace(prompts[i], text=f"the picture of number {i}") for i in (1, 5)}
    assert reworded_prompts(None, prompts, registry) == {}


def test_words_of_a_plugin(registry: Registry, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="wording: toy has other words for none of the 6 held-out prompts"):
        reworded_prompts(WordingSection(use="toy"), prompts, registry)
    assert reworded_prompts(WordingSection(use="toy"), prompts, registry, some=False) == {}
    words: Callable[..., Any] = lambda self, prompts: [None, *(f"{p.text}!" for p in prompts[1:])]  # noqa: E731
    monkeypatch.setattr(ToyPrompts, "reworded", words)
    found = reworded_prompts(WordingSection(use="toy"), prompts, registry)
    assert [prompt.text for prompt in found.values()] == [f"{text}!" for text in TEXTS[1:]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"prompt": TEXTS[0]}], r"wording: .*reworded\.jsonl:1: `reworded` must be the prompt in other words"),
        ([{"prompt": TEXTS[0], "reworded": " "}], r"jsonl:1: `reworded` must be"),
        ([*rows([0]), {"prompt": TEXTS[0], "reworded": "x"}], r"jsonl:2: the prompt already has other words"),
        ([{"prompt": "x", "reworded": "y"}], r"jsonl: has other words for none of the 6 held-out prompts"),
    ],
)
def test_files_with_mistakes_are_refused(
    tmp_path: Path, registry: Registry, prompts: list[Prompt], lines: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        reworded_prompts(WordingSection(file=str(write(tmp_path, lines))), prompts, registry)
    with pytest.raises(UserError, match=r"evaluation\.monitors\.wording: .*absent"):
        reworded_prompts(WordingSection(file=str(tmp_path / "absent.jsonl")), prompts, registry)


@pytest.mark.parametrize(
    ("monitors", "message"),
    [
        ({"wording": {}}, "evaluation.monitors.wording: set exactly one of `file`"),
        ({"wording": {"use": "toy", "file": "x"}}, "set exactly one of `file`"),
        ({"wording": {"file": "x", "options": {"a": 1}}}, "`options` require `use`"),
        ({"tolerances": {"wording_gap.brightness": 1}}, "unknown monitor 'wording_gap.brightness'"),
        ({"wording": "x", "tolerances": {"wording_gap.bright": 1}}, "unknown monitor 'wording_gap.bright'"),
    ],
)
def test_mistakes_of_the_run_file_are_named(tmp_path: Path, monitors: dict[str, Any], message: str) -> None:
    made = run_data(tmp_path, evaluation={"monitors": monitors})
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(made)
    told = "\n".join(f"{'.'.join(map(str, at))}: {text}" for at, text in explain(RunConfig, made, caught.value))
    assert message in told


def test_it_requires_held_out_prompts(tmp_path: Path) -> None:
    made = run_data(tmp_path, evaluation={"monitors": {"wording": "x"}})
    del made["prompts"]["heldout"]
    with pytest.raises(ValidationError, match="evaluation requires held-out prompts"):
        RunConfig.model_validate(made)
