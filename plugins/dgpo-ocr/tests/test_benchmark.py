"""The suite `ocr`: its prompts and its mean by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dgpo_core.api.suites import open_suite
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_ocr.benchmark import PUBLISHED, OcrSuite
from dgpo_ocr.options import OcrSuiteOptions
from dgpo_schemas.base import UseBlock

RECORDED = (
    "1 1 0.5 0.25 0 1 0.75 1 1 0.8 0.2 1 1 0 0.5 1 0.75 0.25 1 1 0.4 0.6 1 1 0.9 0.1 1 0 1 1 0.5 0.5"  # 32 scores
)
TOTAL = 22.0
"""Of the scores, by hand: 15 x 1, 4 x 0.5, 2 x 0.75, 2 x 0.25, and 0.8 + 0.2 + 0.4 + 0.6 + 0.9 + 0.1; three zeros."""


def prompt_file(directory: Path, count: int = 32) -> Path:
    path = directory / "test.txt"
    path.write_text("".join(f'a sign that says "WORD {i}"\n' for i in range(count)))
    return path


def test_the_mean_by_hand(tmp_path: Path) -> None:
    suite = OcrSuite(OcrSuiteOptions(file=str(prompt_file(tmp_path))))
    scores = [float(text) for text in RECORDED.split()]
    values = {"ocr": torch.tensor(scores, dtype=torch.float64)[:, None]}
    assert len(scores) == 32
    found = suite.aggregate(values, suite.prompts())
    assert found == pytest.approx({"overall": TOTAL / 32, "exact": 15 / 32}, abs=1e-12)
    values["ocr"][0] = math.nan  # a missing sample, of score 1, is not a wrong one
    found = suite.aggregate(values, suite.prompts())
    assert found == pytest.approx({"overall": (TOTAL - 1) / 31, "exact": 14 / 31}, abs=1e-12)


def test_the_published_file_is_known(test_data: Path) -> None:
    suite = OcrSuite(OcrSuiteOptions(file=str(test_data / "prompts/flow_grpo_ocr_test.txt")))
    assert len(suite.prompts()) == 1018
    assert [file.digest for file in suite.files()] == [PUBLISHED]


def test_prompts_without_a_text_are_refused(tmp_path: Path) -> None:
    path = prompt_file(tmp_path)
    path.write_text(path.read_text() + "a sign\n")
    with pytest.raises(UserError, match=r"test\.txt:33: .*has no double quote"):
        OcrSuite(OcrSuiteOptions(file=str(path))).prompts()


def judged(directory: Path, said: dict[str, str] | None = None, **options: object) -> list[str]:
    """What is not comparable, with these options of the suite, if the engine says this of itself."""
    opened = open_suite(UseBlock(use="ocr", options={"file": str(prompt_file(directory)), **options}), get_registry())
    return list(
        opened.suite.not_comparable({"ocr": {**(said or {}), "use": "ocr", "options": opened.rewards[0].options}})
    )


def test_no_engine_is_the_published_one(tmp_path: Path) -> None:
    """PaddleOCR 3 has other models than PaddleOCR 2, so not even `paddleocr` gives the published scores."""
    told = "the engine is {}, the published one is PaddleOCR 2.9.1"
    assert judged(tmp_path) == [told.format("rapidocr")]
    assert judged(tmp_path, engine="paddleocr") == [told.format("paddleocr")]
    said = {"engine": "paddleocr 3.7.0, paddlepaddle 3.2.0"}
    assert judged(tmp_path, said, engine="paddleocr") == [told.format("paddleocr 3.7.0, paddlepaddle 3.2.0")]


def test_another_rule_or_least_confidence_is_said(tmp_path: Path) -> None:
    assert judged(tmp_path, rule="normalized")[1:] == ["the rule is normalized, the published one is flowgrpo"]
    assert judged(tmp_path, min_score=0.0)[1:] == [
        "lines with a confidence below 0.0 are ignored, in the published engine below 0.5"
    ]


@pytest.mark.parametrize("rule", ["flowgrpo", "normalized"])
def test_lines_that_the_published_engine_drops_are_ignored(tmp_path: Path, rule: str) -> None:
    """PaddleOCR 2 drops lines below 0.5 itself; the reward with the rule `flowgrpo` would keep them."""
    options = {"file": str(prompt_file(tmp_path)), "rule": rule}
    opened = open_suite(UseBlock(use="ocr", options=options), get_registry())
    (block,) = opened.rewards
    assert (block.options["rule"], block.options["min_score"]) == (rule, 0.5)
    assert block.options["video"] == ("flowgrpo" if rule == "flowgrpo" else "mean"), "the rule sets the rest"
