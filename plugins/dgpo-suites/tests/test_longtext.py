"""LongText-Bench: shares of words by hand, and words as the published script takes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_core.errors import UserError
from dgpo_core.training.suites import measured, unusable
from dgpo_schemas.suites import SuiteRecord
from dgpo_suites.longtext import LongTextSuite, units
from dgpo_suites.options import LongTextOptions

Judged = Callable[..., SuiteRecord]
ROWS = [
    {"prompt_id": 0, "category": "sign", "length": "short", "prompt": "a sign", "text": ["ONE TWO", "three, two!"]},
    {"prompt_id": 1, "category": "poster", "length": "long", "prompt": "a poster", "text": ["a b c d e f"]},
]
ANSWERS = (
    (1, 1, 1, 1), (1, 1, 0, 0), (0, 0, 0, 0), (1, 0, 1, 0),
    (1, 1, 1, 1, 1, 1), (1, 1, 1, 0, 0, 0), (0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 0),
)  # fmt: skip
"""40 recorded words. Read of the first prompt: 4, 2, 0, 2 of 4; of the second: 6, 3, 1, 0 of 6."""
TABLE = {"overall": 18 / 40, "sign": 8 / 16, "poster": 10 / 24, "short": 8 / 16, "long": 10 / 24}


def test_a_table_by_hand(judged: Judged, write_lines: Any) -> None:
    record = judged("longtext", ANSWERS, file=write_lines(ROWS))
    assert {name: score.value for name, score in record.scores.items()} == pytest.approx(TABLE, abs=1e-12)
    assert record.not_comparable[-1] == "the texts are read by lamp, the published one is Qwen/Qwen2.5-VL-7B-Instruct"


def test_missing_samples_are_not_unread(judged: Judged, write_lines: Any) -> None:
    answers: list[Any] = [*ANSWERS[:7], (None, 0, 0, 0, 0, 0)]
    record = judged("longtext", answers, file=write_lines(ROWS))
    assert record.scores["overall"].value == pytest.approx(18 / 34)
    assert record.rewards["reader"].missing == 1


def script(text: str, mode: str) -> list[str]:
    """`preprocess_string` and the split of the published script."""
    letters = "\u4e00-\u9fa5a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
    cleaned = re.sub(rf"[^{letters}\s]", "", text)
    if mode == "en":
        return re.sub(r"\s+", " ", cleaned).strip().lower().split()
    return list("".join(re.compile(f"[{letters}]").findall(cleaned)).strip())


@given(st.text(alphabet="aB cé!\n\u00a07中文。-"), st.sampled_from(["en", "zh"]))
def test_units_are_those_of_the_script(text: str, language: Any) -> None:
    assert units(text, language) == Counter(script(text, language))


def test_words_count_as_often_as_they_occur() -> None:
    asked, read = units("two two, THREE", "en"), units("Two three four", "en")
    assert (asked & read).total() == 2
    assert units("你好，好A", "zh") == Counter({"好": 2, "你": 1, "A": 1})


def test_a_score_without_a_text_is_a_missing_sample(opened: Any, write_lines: Any) -> None:
    suite = opened("longtext", file=write_lines([{"prompt": "x", "text": ["ONE TWO"]}, {"prompt": "y", "text": ["A"]}]))
    read = [{"reader": {"value": 0.5, "text": "one"}}, {"reader": {"value": 1.0}}]
    values = measured(suite.suite, suite.prompts, read)
    assert suite.suite.aggregate(values, suite.prompts)["overall"] == 0.5
    assert unusable(values, 2) == [False, True]


def test_a_line_ends_at_a_newline_alone(opened: Any, tmp_path: Any) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\u2028b", "text": ["ONE\u0085"]}\r\n\n{"prompt": "c", "text": ["D"]}\n')
    prompts = opened("longtext", file=str(path)).prompts
    assert [(prompt.text, prompt.origin) for prompt in prompts] == [("a\u2028b", f"{path}:1"), ("c", f"{path}:3")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "text": "ONE"}, r"jsonl:1: `prompt` must be a text, and `text` a list of texts"),
        ({"prompt": "x", "text": ["!!"]}, r"jsonl:1: `text` has nothing to read in the language en"),
        ({"prompt": "x"}, r"jsonl:1: has no `text`"),
    ],
)
def test_lines_of_another_format_are_refused(opened: Any, write_lines: Any, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened("longtext", file=write_lines([row]))


def test_a_judge_reads_with_the_form_for_it() -> None:
    reader = {"use": "judge", "options": {"urls": ["http://gpu:8000"], "model": "Qwen/Qwen2.5-VL-7B-Instruct"}}
    suite = LongTextSuite(LongTextOptions.model_validate({"file": "text_prompts.jsonl", "reader": reader}))
    (block,) = suite.rewards()
    assert (block.use, block.options["form"]) == ("judge", "reading")
    told = "the judge is asked in other words than in the published script"
    judge = {"use": "judge", "model": "/models/Qwen2.5-VL-7B-Instruct", "options": block.options}
    assert suite.not_comparable({"reader": judge}) == [told]
    other = suite.not_comparable({"reader": {**judge, "model": "Qwen3-VL-8B"}})
    assert other == ["the judge is Qwen3-VL-8B, the published one is Qwen/Qwen2.5-VL-7B-Instruct", told]
