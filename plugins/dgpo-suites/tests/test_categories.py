"""DrawBench and PartiPrompts: means by category of recorded scores, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgpo_core.api.suites import OpenedSuite
from dgpo_core.errors import UserError
from dgpo_schemas.suites import SuiteRecord

Judged = Callable[..., SuiteRecord]
Opened = Callable[..., OpenedSuite]
CATEGORIES = ("Colors", "Counting", "Colors", "DALL-E")
SCORES = (
    1, 0.5, 0, 0.5,  0.25, 0.25, 0.5, 1,  0.75, 0, 0, 0.25,  1, 1, 0.5, 0.5,
    0, 0, 0.25, 0.75,  1, 1, 1, 1,  0.5, 0.25, 0.75, 0.5,  0, 0, 0, 0.5,
)  # fmt: skip
"""32: four samples of two times four prompts."""
REWARDS = [{"use": "pictured", "name": "a"}]


def test_drawbench_by_hand(judged: Judged, tmp_path: Path) -> None:
    path = tmp_path / "drawbench.csv"
    lines = [f'"prompt {i}, or so",{category}' for i, category in enumerate([*CATEGORIES, *CATEGORIES])]
    path.write_text("\n".join(["Prompts,Category", *lines, ","]) + "\n")
    record = judged("drawbench", [(score,) for score in SCORES], file=str(path), rewards=REWARDS)
    # Colors: 2 + 1 + 1 + 2 of 16; Counting: 2 + 4 of 8; DALL-E: 3 + 0.5 of 8.
    assert {name: score.value for name, score in record.scores.items()} == pytest.approx(
        {"a": 15.5 / 32, "a: Colors": 6 / 16, "a: Counting": 6 / 8, "a: DALL-E": 3.5 / 8}
    )
    assert record.not_comparable == ["the published judges are people, here a"]


def test_a_missing_score_is_left_out(judged: Judged, tmp_path: Path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text('Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\t\na "cat\tAnimals\tBasic\tx\n')
    record = judged("parti", [(0.5,), (None,)], file=str(path), rewards=REWARDS)
    assert (record.scores["a"].value, record.scores["a: Abstract"].value) == (0.5, 0.5)
    assert record.scores["a: Animals"].value is None
    assert record.rewards["a"].missing == 1
    assert "PartiPrompts.tsv is not the published file" in record.not_comparable[0]


def test_quotation_marks_of_partiprompts_are_characters(opened: Opened, tmp_path: Path) -> None:
    """Its prompts begin with, end with and contain unbalanced quotation marks, which no cell is quoted with."""
    texts = ['"Hello" on a sign', 'a sign that says "Hi"', '"', 'the "word', 'a ""b""']
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text("Prompt\tCategory\tChallenge\tNote\n" + "".join(f"{t}\tArts\tBasic\t\n" for t in texts))
    suite = opened("parti", file=str(path), rewards=REWARDS)
    assert [prompt.text for prompt in suite.prompts] == texts
    assert suite.prompts[3].origin == f"{path}:5"


def test_weights_are_refused(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n")
    for rewards, key in (({"weight": 0.5}, "weight"), ({"transform": "rank"}, "transform")):
        with pytest.raises(UserError, match=f"reward a: a suite aggregates scores by itself; remove `{key}`"):
            opened("drawbench", file=str(path), rewards=[REWARDS[0] | rewards])


def test_parti_by_hand(judged: Judged, tmp_path: Path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    rows = [f"prompt {i}\t{'Animals' if i % 4 else 'Arts'}\tBasic\tnote" for i in range(32)]
    path.write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *rows]))
    record = judged("parti", [(score,) for score in SCORES], file=str(path), rewards=REWARDS)
    # The first of each four: 1, 0.25, 0.75, 1, 0, 1, 0.5, 0.
    assert record.scores["a: Arts"].value == pytest.approx(4.5 / 8)
    assert record.scores["a: Animals"].value == pytest.approx(11 / 24)
    assert record.scores["a"].value == pytest.approx(15.5 / 32)


def test_several_rewards_have_their_own_means(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Prompts,Category\na,One\nb,Two\n")
    suite = opened("drawbench", file=str(path), rewards=["pictured", {"use": "pictured", "name": "again"}])
    values = {"pictured": torch.tensor([[1.0], [0.0]]), "again": torch.tensor([[math.nan], [0.25]])}
    found = suite.suite.aggregate({name: value.double() for name, value in values.items()}, suite.prompts)
    assert found["pictured"] == 0.5
    assert (found["again"], found["again: Two"]) == (0.25, 0.25)
    assert math.isnan(found["again: One"])


def test_repeated_lines_of_a_text_file_are_one_prompt(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "drawbench.txt"
    path.write_text("a red car\n" * 5 + "two cats\n" * 5)
    suite = opened("drawbench", file=str(path), rewards=REWARDS)
    assert [prompt.text for prompt in suite.prompts] == ["a red car", "two cats"]
    assert {prompt.metadata["category"] for prompt in suite.prompts} == {"all"}


def test_other_tables_are_refused(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("Prompt,Category\na,One\n")
    with pytest.raises(UserError, match=r"x\.csv:1: has no column 'Prompts'; did you mean Prompt\?"):
        opened("drawbench", file=str(path), rewards=REWARDS)
    path.write_text("Prompts,Category\na\n")
    with pytest.raises(UserError, match=r"x\.csv:2: has no Category"):
        opened("drawbench", file=str(path), rewards=REWARDS)


def test_options_are_checked(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="file"):
        opened("parti")
    path = tmp_path / "x.txt"
    path.write_text("a\n")
    with pytest.raises(Exception, match="unknown reward 'pictur'"):
        opened("drawbench", file=str(path), rewards=["pictur"])
