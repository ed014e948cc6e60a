"""GenEval 2: Soft-TIFA of recorded probabilities by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_schemas.suites import SuiteRecord

Judged = Callable[..., SuiteRecord]
SKILLS = ("count", "attribute", "object", "position", "verb")
QUESTIONS = {
    "count": ["How many pigs are in the image?", "two"],
    "attribute": ["Are the pigs green?", "Yes"],
    "object": ["Are there any pigs in the image?", "Yes"],
    "position": ["Are the pigs on the left?", "Yes"],
    "verb": ["Are the pigs jumping?", "Yes"],
}
ROWS = [
    {
        "prompt": f"prompt {i}",
        "atom_count": 3 + i % 2,
        "vqa_list": list(QUESTIONS.values()),
        "skills": list(SKILLS),
    }
    for i in range(6)
]
ANSWERS = (
    (1.0, 1.0, 1.0, 1.0, 1.0),
    (0.5, 1.0, 1.0, 1.0, 0.0),
    (0.25, 0.5, 1.0, 0.5, 0.5),
    (1.0, 0.5, 0.5, 0.5, 0.25),
    (0.0, 0.0, 1.0, 0.0, 0.0),
    (0.5, 0.5, 0.5, 0.5, 0.5),
)  # 30 recorded answers
GM = (1.0, 0.0, 0.03125 ** (1 / 5), 0.03125 ** (1 / 5), 0.0, 0.5)
"""0.25 * 0.5 * 0.5 * 0.5 and 0.5 * 0.5 * 0.5 * 0.25 are both 1/32, whose fifth root is 1/2."""
TABLE = {
    "soft_tifa_gm": 100 * 2.5 / 6,
    "soft_tifa_am": 100 * (5 + 3.5 + 2.75 + 2.75 + 1 + 2.5) / 30,
    "object": 100 * 5 / 6,
    "attribute": 100 * 3.5 / 6,
    "count": 100 * 3.25 / 6,
    "position": 100 * 3.5 / 6,
    "verb": 100 * 2.25 / 6,
    "atoms 3": 100 * (1.0 + 0.5 + 0.0) / 3,
    "atoms 4": 100 * (0.0 + 0.5 + 0.5) / 3,
}


def test_a_table_by_hand(judged: Judged, write_lines: Any) -> None:
    record = judged("geneval2", ANSWERS, file=write_lines(ROWS))
    assert {name: score.value for name, score in record.scores.items()} == pytest.approx(TABLE, abs=1e-9)
    assert next(iter(record.scores)) == "soft_tifa_gm"
    assert (record.prompts, record.samples_per_prompt, record.rewards["judge"].missing) == (6, 1, 0)


def test_one_missing_answer_is_a_missing_sample(judged: Judged, write_lines: Any) -> None:
    answers = [*ANSWERS[:4], (None, 0.0, 1.0, 0.0, 0.0), ANSWERS[5]]
    record = judged("geneval2", answers, file=write_lines(ROWS))
    assert record.rewards["judge"].missing == 1
    assert record.scores["soft_tifa_gm"].value == pytest.approx(100 * 2.5 / 5)
    assert record.scores["object"].value == pytest.approx(100 * 4 / 5)
    assert record.scores["atoms 3"].value == pytest.approx(100 * 1.5 / 2)


def test_the_file_and_the_judge_decide_whether_scores_are_comparable(judged: Judged, write_lines: Any) -> None:
    path = write_lines(ROWS)
    record = judged("geneval2", ANSWERS, file=path)
    assert record.files[0].published == "09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43"
    assert [reason.split(" (")[0] for reason in record.not_comparable] == [
        "prompts.jsonl is not the published file",
        "the judge is lamp, the published one is Qwen/Qwen3-VL-8B-Instruct",
    ]
    options = {"model": "/models/Qwen3-VL-8B-Instruct/", "template": "mine.txt"}
    record = judged("geneval2", ANSWERS, file=path, judge={"use": "pictured", "options": options})
    assert record.not_comparable[1:] == ["the judge is asked with another template than the published one"]
    assert record.rewards["judge"].provenance == {"model": "/models/Qwen3-VL-8B-Instruct/"}


def test_the_judge_of_dgpo_judge_is_asked_for_soft_tifa(write_lines: Any) -> None:
    from dgpo_suites.geneval2 import GenEval2Suite
    from dgpo_suites.options import GenEval2Options

    options = {"file": write_lines(ROWS), "judge": {"options": {"urls": ["http://gpu:8000"]}}}
    (block,) = GenEval2Suite(GenEval2Options.model_validate(options)).rewards()
    assert (block.use, block.label) == ("judge", "judge")
    assert block.options == {"form": "soft-tifa", "urls": ["http://gpu:8000"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skills": ["count"]}, r"prompts\.jsonl:2: `skills` must be a list with one skill per question"),
        ({"skills": ["color"] * 5}, r"prompts\.jsonl:2: unknown skill 'color' \(allowed: object, "),
        ({"vqa_list": [["How many?"]]}, r"prompts\.jsonl:2: `prompt` must be a text, and `vqa_list` a list of pairs"),
        ({"vqa_list": []}, r"prompts\.jsonl:2: `prompt` must be a text"),
        ({"atom_count": "3"}, r"prompts\.jsonl:2: `atom_count` must be an integer"),
    ],
)
def test_lines_of_another_format_are_refused(opened: Any, write_lines: Any, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        opened("geneval2", file=write_lines([ROWS[0], ROWS[1] | change]))


def test_lines_without_keys_and_absent_files_are_refused(opened: Any, write_lines: Any, tmp_path: Any) -> None:
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: has no `vqa_list`; it must be an object with prompt, "):
        opened("geneval2", file=write_lines([{"prompt": "x"}]))
    with pytest.raises(UserError, match=r"absent\.jsonl: cannot be read: No such file"):
        opened("geneval2", file=str(tmp_path / "absent.jsonl"))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"bad\.jsonl:1: not JSON"):
        opened("geneval2", file=str(tmp_path / "bad.jsonl"))
