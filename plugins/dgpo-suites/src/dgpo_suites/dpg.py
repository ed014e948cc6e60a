"""The suites `dpg` and `dpg-reference`: DPG-Bench (arXiv 2403.05135), questions that depend on each other.

A question counts 0 if a question that it depends on counts 0; the score of a sample is the mean over its questions, the
total is 100 times the mean over prompts. `dpg` counts every sample and question. `dpg-reference` counts as
`dpg_bench/compute_dpg_bench.py` of TencentQQGYLab/ELLA does:

* the first row of the table is skipped, and with it every prompt that has a question depending on the row's;
* a prompt of which any sample is missing is left out;
* the categories count the answers about the last sample only, without regard to dependencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_suites.judging import LABEL, judge_defaults, other_judge
from dgpo_suites.options import DpgOptions
from dgpo_suites.reading import PromptFile, table

__all__ = ["DpgReferenceSuite", "DpgSuite", "gated"]

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
JUDGE = "damo/mplug_visual-question-answering_coco_large_en"


def gated(answers: Mapping[int, bool], parents: Mapping[int, Sequence[int]]) -> dict[int, bool]:
    """Return the answers with False for every question of which a parent is False, in the order of the questions.

    answers: question number -> answer; parents: question number -> the questions it depends on, 0 for none. Raises
    KeyError for a parent that is no question.
    """
    found = dict(answers)
    for number, needed in parents.items():
        if not all(found[parent] for parent in needed if parent != 0):
            found[number] = False
    return found


class DpgSuite(Suite):
    """Yes or no to each question about a sample; four samples per prompt."""

    samples_per_prompt = 4
    options: DpgOptions
    skipped = 0
    """Number of rows of the table that are left out."""

    def prompts(self) -> list[Prompt]:
        """Read the table. Raises UserError, naming file and line, for rows of another format."""
        self._file = PromptFile(self.options.file)
        items: dict[str, list[tuple[str, dict[str, str]]]] = {}
        for number, (where, row) in enumerate(table(self._file, COLUMNS, ",")):
            if number >= self.skipped:
                items.setdefault(row["item_id"], []).append((where, row))
        return [_prompt(item, rows) for item, rows in items.items()]

    def files(self) -> list[SuiteFile]:
        """Return the table."""
        return [self._file.file]

    def rewards(self) -> list[RewardBlock]:
        """Return the judge."""
        return [self.options.judge.block(LABEL, **judge_defaults(self.options.judge.use))]

    def measure(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, float]:
        """Return the score of a sample, and the sum and number of the answers of each category."""
        answers = self._answers(prompt, scores, diagnostics)
        if answers is None:
            return {"score": math.nan}
        known = {number: [p for p in needed if p in answers] for number, needed in _parents(prompt).items()}
        found = gated(answers, known)
        return {"score": sum(found.values()) / len(found), **self._categories(prompt, found)}

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the total, the five broad categories and the detailed ones, in percent."""
        return {"overall": 100 * _mean_of_prompts(values["score"]), **_by_category(values)}

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Compare the judge with the published one."""
        return other_judge(judges[LABEL], JUDGE)

    def _answers(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> dict[int, bool] | None:
        """Return the answer to each question by its number; None if they are not known."""
        numbers, clauses = prompt.metadata["propositions"], diagnostics[LABEL].get("clauses")
        if math.isnan(scores[LABEL]) or not isinstance(clauses, Sequence) or len(clauses) != len(numbers):
            return None
        return {number: bool(clause["ok"]) for number, clause in zip(numbers, clauses, strict=True)}

    def _categories(self, prompt: Prompt, answers: Mapping[int, bool]) -> dict[str, float]:
        found: dict[str, float] = {}
        for category, answer in zip(prompt.metadata["categories"], answers.values(), strict=True):
            for name in dict.fromkeys((category.split("-")[0].strip(), category)):
                found[f"{name}.sum"] = found.get(f"{name}.sum", 0.0) + answer
                found[f"{name}.count"] = found.get(f"{name}.count", 0.0) + 1
        return found


class DpgReferenceSuite(DpgSuite):
    """DPG-Bench as its script counts."""

    skipped = 1

    def measure(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, float]:
        """Return the score of a sample, missing where the script fails, and the answers of each category."""
        answers = self._answers(prompt, scores, diagnostics)
        if answers is None:
            return {"score": math.nan}
        try:
            found = gated(answers, _parents(prompt))
        except KeyError:  # it depends on the skipped row: the script leaves it out, although it was judged
            return {"score": math.nan, "left_out": 1.0}
        return {"score": sum(found.values()) / len(found), **self._categories(prompt, answers)}

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the total over complete prompts, and the categories of their last samples, in percent."""
        complete = ~values["score"].isnan().any(1)
        last = {name: value[complete, -1:] for name, value in values.items()}
        return {"overall": 100 * _mean_of_prompts(values["score"][complete]), **_by_category(last)}


def _parents(prompt: Prompt) -> dict[int, list[int]]:
    return dict(zip(prompt.metadata["propositions"], prompt.metadata["dependencies"], strict=True))


def _prompt(item: str, rows: Sequence[tuple[str, Mapping[str, str]]]) -> Prompt:
    """Return the prompt of an item with its questions."""
    by_number: dict[int, tuple[list[int], Mapping[str, str]]] = {}
    for where, row in rows:
        try:
            parents = [int(part) for part in row["dependency"].split(",")]
            by_number[int(row["proposition_id"])] = parents, row  # the last row of a number counts, as in the script
        except ValueError:
            raise UserError(
                f"{where}: proposition_id and dependency must be integers, the latter separated by commas, got "
                f"{row['proposition_id']!r} and {row['dependency']!r}"
            ) from None
        if not row["question_natural_language"].strip():
            raise UserError(f"{where}: has no question_natural_language")
    metadata = {
        "item": item,
        "questions": [[row["question_natural_language"].strip(), "yes"] for _, row in by_number.values()],
        "propositions": list(by_number),
        "dependencies": [parents for parents, _ in by_number.values()],
        "categories": [row["tuple"].split("(")[0].strip() for _, row in by_number.values()],
    }
    return Prompt(rows[0][1]["text"].strip(), metadata, rows[0][0])


def _mean_of_prompts(scores: Tensor) -> float:
    """Return the mean over prompts of the mean over their scored samples."""
    per_prompt = scores.nanmean(1)
    return float(per_prompt.nanmean()) if len(per_prompt) else math.nan


def _by_category(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return 100 times the mean over all answers of each category, the broad ones first."""
    names = sorted((name.removesuffix(".sum") for name in values if name.endswith(".sum")), key=lambda n: ("-" in n, n))
    sums = {name: (values[f"{name}.sum"].nansum(), values[f"{name}.count"].nansum()) for name in names}
    return {name: 100 * float(total / count) if count else math.nan for name, (total, count) in sums.items()}
