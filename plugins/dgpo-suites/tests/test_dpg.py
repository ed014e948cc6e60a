"""DPG-Bench: recorded answers by hand, and the quirks of the published script against a transcript of its loops."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_schemas.suites import SuiteRecord

Judged = Callable[..., SuiteRecord]
COLUMNS = (
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
    "question_natural_language",
)  # fmt: skip
PARENTS = {1: "0", 2: "1", 3: "1, 2", 4: "0"}
CATEGORIES = {1: "entity - whole", 2: "attribute - color", 3: "relation - spatial", 4: "entity - part"}
ITEMS = ("0", "coco1", "partiprompts7")
YES, NO = 1.0, 0.0
ANSWERS = (
    (YES, YES, YES, YES), (YES, NO, YES, YES), (NO, YES, YES, NO), (YES, YES, NO, NO),
    (NO, NO, NO, YES), (YES, YES, YES, NO), (YES, YES, YES, YES), (NO, YES, NO, YES),
    (YES, YES, YES, YES), (YES, YES, YES, YES), (YES, NO, NO, NO), (NO, NO, YES, YES),
)  # fmt: skip
"""Of three prompts with four samples and four questions each: 48."""
TABLE = {
    # Gated: 4, 2 (3 depends on 2), 0, 2 of 4; 1, 3, 4, 1 (2 depends on 1); 4, 4, 1, 1 (3 depends on 1).
    "overall": 100 * ((8 / 16) + (9 / 16) + (10 / 16)) / 3,
    "attribute": 100 * (2 + 2 + 2) / 12,
    "attribute - color": 100 * 6 / 12,
    "relation": 100 * (1 + 2 + 2) / 12,
    "relation - spatial": 100 * 5 / 12,
    "entity": 100 * (3 + 2 + 2 + 3 + 3 + 3) / 24,
    "entity - whole": 100 * (3 + 2 + 3) / 12,
    "entity - part": 100 * (2 + 3 + 3) / 12,
}


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "dpg_bench.csv"
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        for item in ITEMS:
            for number, parents in PARENTS.items():
                category = CATEGORIES[number]
                row = [
                    item,
                    f"text of {item}, with a comma",
                    "",
                    number,
                    parents,
                    "",
                    "",
                    f"{category} (x)",
                    f"Is {number}?",
                ]
                writer.writerow(row)
    return str(path)


def scores(record: SuiteRecord) -> dict[str, float | None]:
    return {name: score.value for name, score in record.scores.items()}


def test_a_table_by_hand(judged: Judged, table: str) -> None:
    record = judged("dpg", ANSWERS, file=table)
    assert scores(record) == pytest.approx(TABLE, abs=1e-9)
    assert next(iter(record.scores)) == "overall"


def test_missing_samples_leave_the_others(judged: Judged, table: str) -> None:
    answers = [(None, YES, YES, YES), *ANSWERS[1:]]
    record = judged("dpg", answers, file=table)
    assert record.scores["overall"].value == pytest.approx(100 * (4 / 12 + 9 / 16 + 10 / 16) / 3)
    assert record.rewards["judge"].missing == 1


def published_script(rows: Sequence[dict[str, str]], answers: dict[str, list[list[bool] | None]]) -> dict[str, float]:
    """The loops of compute_dpg_bench.py: tables as dictionaries, a picture that raises is skipped."""
    questions: dict[str, dict[int, tuple[str, list[int]]]] = {}
    order: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        order.setdefault(row["item_id"], []).append(int(row["proposition_id"]))
        if i == 0:
            continue
        parents = [int(part.strip()) for part in row["dependency"].split(",")]
        questions.setdefault(row["item_id"], {})[int(row["proposition_id"])] = (row["tuple"], parents)
    totals, categories = [], defaultdict(list)
    for item, asked in questions.items():
        try:
            sample_scores = []
            for sample in answers[item]:
                if sample is None:
                    raise ValueError(item)
                all_answers = dict(zip(order[item], sample, strict=True))
                found = {number: float(all_answers[number]) for number in asked}
                ungated = found.copy()
                for number, (_, parents) in asked.items():
                    for parent in parents:
                        if parent == 0:
                            continue
                        if found[parent] == 0:
                            found[number] = 0.0
                            break
                sample_scores.append(sum(found.values()) / len(found))
            totals.append(sum(sample_scores) / len(sample_scores))
            for number, (of_question, _) in asked.items():
                category = of_question.split("(")[0].strip()
                categories[category].append(ungated[number])
                categories[category.split("-")[0].strip()].append(ungated[number])
        except (KeyError, ValueError):
            continue
    means = {name: 100 * sum(found) / len(found) for name, found in categories.items()}
    return {"overall": 100 * sum(totals) / len(totals), **means}


@pytest.mark.parametrize("missing", [None, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_reference_counts_as_the_script(judged: Judged, table: str, seed: int, missing: int | None) -> None:
    rng = Random(seed)
    answers: list[list[bool] | None] = [[rng.random() < 0.7 for _ in range(4)] for _ in range(12)]
    if missing is not None:
        answers[missing] = None
    with open(table, newline="") as handle:
        rows = list(csv.DictReader(handle))
    expected = published_script(rows, {item: answers[4 * i : 4 * i + 4] for i, item in enumerate(ITEMS)})
    # The skipped row is a question that the judge is not asked.
    asked = [None if row is None else row[1:] if i < 4 else row for i, row in enumerate(answers)]
    given = [[None] * 4 if row is None else [float(answer) for answer in row] for row in asked]
    record = judged("dpg-reference", given, file=table)
    assert scores(record) == pytest.approx(expected, abs=1e-9)


def test_the_reference_by_hand(judged: Judged, table: str) -> None:
    """The first prompt depends on the skipped row, so it is skipped too; the last samples are (NO, YES, NO, YES) and
    (NO, NO, YES, YES)."""
    answers = [row[1:] if i < 4 else row for i, row in enumerate(ANSWERS)]
    record = judged("dpg-reference", answers, file=table)
    assert scores(record) == pytest.approx(
        {
            "overall": 100 * (9 / 16 + 10 / 16) / 2,
            "attribute": 50.0, "attribute - color": 50.0, "relation": 50.0, "relation - spatial": 50.0,
            "entity": 50.0, "entity - whole": 0.0, "entity - part": 100.0,
        },
        abs=1e-9,
    )  # fmt: skip
    assert record.rewards["judge"].missing == 0, "what the script leaves out has been judged"


def test_the_judge_is_another_one(judged: Judged, table: str) -> None:
    record = judged("dpg", ANSWERS, file=table)
    assert record.not_comparable == [
        "the judge is lamp, the published one is damo/mplug_visual-question-answering_coco_large_en"
    ]
    assert record.files[0].published is None, "its digest is not known"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("item_id,", "item,", r"dpg_bench\.csv:1: has no column 'item_id'"),
        (
            'coco1,"text of coco1, with a comma",,2,1,',
            'coco1,"text of coco1, with a comma",,2,one,',
            r"csv:7: proposition_id",
        ),
        ("Is 2?", " ", r"csv:3: has no question_natural_language"),
    ],
)
def test_rows_of_another_format_are_refused(opened: Any, table: str, old: str, new: str, message: str) -> None:
    text = Path(table).read_text()
    assert old in text
    Path(table).write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        opened("dpg", file=table)
