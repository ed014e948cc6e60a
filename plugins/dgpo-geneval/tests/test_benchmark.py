"""The suite `geneval`: the published prompts, and the aggregation of the published script by hand."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest
import torch

from dgpo_core.api.suites import open_suite
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Prompt
from dgpo_geneval import suite as templates
from dgpo_geneval.benchmark import PUBLISHED, GenEvalSuite
from dgpo_geneval.options import GenEvalSuiteOptions
from dgpo_schemas.base import UseBlock

RECORDED = (
    ("single_object", "1111"), ("single_object", "1101"), ("two_object", "1100"), ("two_object", "0000"),
    ("counting", "1000"), ("counting", "0110"), ("colors", "1111"), ("position", "0001"), ("color_attr", "0100"),
    ("color_attr", "1010"),
)  # fmt: skip
"""Ten prompts of six tasks, four answers each: 40."""
TABLE = {
    "single_object": 7 / 8,
    "two_object": 2 / 8,
    "counting": 3 / 8,
    "colors": 4 / 4,
    "position": 1 / 4,
    "color_attr": 3 / 8,
    "correct_images": 20 / 40,
    "correct_prompts": 9 / 10,
    "overall": (7 / 8 + 2 / 8 + 3 / 8 + 1 + 1 / 4 + 3 / 8) / 6,
}
"""By hand."""


def made() -> GenEvalSuite:
    return GenEvalSuite(GenEvalSuiteOptions())


def test_a_table_by_hand() -> None:
    values = torch.tensor([[float(answer) for answer in answers] for _, answers in RECORDED], dtype=torch.float64)
    found = made().aggregate({"geneval-official": values}, [Prompt("x", {"tag": tag}) for tag, _ in RECORDED])
    assert found == pytest.approx(TABLE, abs=1e-12)
    assert next(iter(found)) == "overall"


def test_the_whole_benchmark_as_its_script_counts() -> None:
    """Rows as in results.jsonl, one per image, and loops in place of pandas."""
    prompts, rng = made().prompts(), Random(7)
    rows = [(p, str(prompt.metadata["tag"]), rng.random() < 0.4) for p, prompt in enumerate(prompts) for _ in range(4)]
    by_tag, by_prompt = defaultdict(list), defaultdict(list)
    for p, tag, correct in rows:
        by_tag[tag].append(correct)
        by_prompt[p].append(correct)
    tasks = {tag: sum(found) / len(found) for tag, found in by_tag.items()}
    values = torch.tensor([float(correct) for *_, correct in rows], dtype=torch.float64).view(-1, 4)
    found = made().aggregate({"geneval-official": values}, prompts)
    assert len(rows) == 2212
    assert found["overall"] == pytest.approx(sum(tasks.values()) / 6, abs=1e-12)
    assert {task: found[task] for task in tasks} == pytest.approx(tasks, abs=1e-12)
    assert found["correct_images"] == pytest.approx(sum(correct for *_, correct in rows) / 2212, abs=1e-12)
    assert found["correct_prompts"] == pytest.approx(sum(map(any, by_prompt.values())) / 553, abs=1e-12)


def test_missing_answers_are_not_wrong_ones() -> None:
    prompts = [Prompt("x", {"tag": tag}) for tag in ("colors", "colors", "position")]
    nan = math.nan
    values = torch.tensor([[1, nan, nan, 0], [nan] * 4, [0, 0, nan, 1]], dtype=torch.float64)
    found = made().aggregate({"geneval-official": values}, prompts)
    assert (found["colors"], found["position"]) == (0.5, 1 / 3)
    assert found["overall"] == pytest.approx((0.5 + 1 / 3) / 2)
    assert (found["correct_images"], found["correct_prompts"]) == (2 / 5, 1.0)


def test_the_prompts_are_the_published_ones_generated_or_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in templates.benchmark()))
    read, generated = GenEvalSuite(GenEvalSuiteOptions(file=str(path))), made()
    assert [(p.text, dict(p.metadata)) for p in read.prompts()] == [
        (p.text, dict(p.metadata)) for p in generated.prompts()
    ]
    assert [file.digest for suite in (read, generated) for file in suite.files()] == [PUBLISHED] * 2


def test_another_file_is_no_benchmark_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    entry = templates.single_object("dog")
    path.write_text(json.dumps(entry) + "\n")
    suite = GenEvalSuite(GenEvalSuiteOptions(file=str(path)))
    assert len(suite.prompts()) == 1
    assert suite.files()[0].digest != PUBLISHED
    path.write_text(json.dumps(entry | {"tag": "colrs"}) + "\n")
    with pytest.raises(UserError, match=r"some\.jsonl:1: .*unknown task 'colrs'; did you mean 'colors'\?"):
        suite.prompts()
    with pytest.raises(UserError, match="absent"):
        GenEvalSuite(GenEvalSuiteOptions(file=str(tmp_path / "absent.jsonl"))).prompts()


def test_another_detector_is_said() -> None:
    opened = open_suite(UseBlock(use="geneval", options={"detector": "shapes"}), get_registry())
    assert [block.use for block in opened.rewards] == ["geneval-official"]
    judges = {"geneval-official": {"use": "geneval-official", "options": opened.rewards[0].options}}
    (reason,) = opened.suite.not_comparable(judges)
    assert reason.startswith("the detector is shapes, the published one is Mask2Former (Swin-S) of mmdetection")
