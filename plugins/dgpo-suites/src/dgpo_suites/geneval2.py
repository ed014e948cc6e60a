"""The suite `geneval2`: GenEval 2 (arXiv 2512.16853), questions about each sample, answered by a judge.

As `evaluation.py --method soft_tifa_gm` and `soft_tifa_analysis.py` of facebookresearch/GenEval2 count: the total is
100 times the mean over prompts of the geometric mean of the questions' probabilities; a skill is 100 times the mean
over all of its questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile, task_means
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_suites.judging import LABEL, judge_defaults, other_judge
from dgpo_suites.options import GenEval2Options
from dgpo_suites.reading import PromptFile, json_lines

__all__ = ["PUBLISHED", "SKILLS", "GenEval2Suite"]

PUBLISHED = "09233adbc9f877fba205f1a20efa4a8640e7e62a91dfd55893562bed8a928e43"
"""SHA-256 of geneval2_data.jsonl."""
SKILLS = ("object", "attribute", "count", "position", "verb")
JUDGE = "Qwen/Qwen3-VL-8B-Instruct"


class GenEval2Suite(Suite):
    """Soft-TIFA: the probability of the expected answer to each question about a sample."""

    samples_per_prompt = 1
    group_by = "atom_count"
    options: GenEval2Options

    def prompts(self) -> list[Prompt]:
        """Read the file. Raises UserError, naming file and line, for lines of another format."""
        self._file = PromptFile(self.options.file, [PUBLISHED])
        return [_prompt(where, row) for where, row in json_lines(self._file, ("prompt", "vqa_list", "skills"))]

    def files(self) -> list[SuiteFile]:
        """Return the prompt file."""
        return [self._file.file]

    def rewards(self) -> list[RewardBlock]:
        """Return the judge."""
        return [self.options.judge.block(LABEL, **judge_defaults(self.options.judge.use))]

    def measure(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, float]:
        """Return the means of a sample, and the sum and number of the probabilities of each skill."""
        skills = prompt.metadata["skills"]
        found = diagnostics[LABEL].get("probabilities")
        if math.isnan(scores[LABEL]) or not isinstance(found, Sequence) or len(found) != len(skills):
            return {"gm": math.nan, "am": math.nan}
        values = {"gm": _geometric_mean(found), "am": math.fsum(found) / len(found)}
        for skill in dict.fromkeys(skills):
            of_skill = [p for p, one in zip(found, skills, strict=True) if one == skill]
            values |= {f"{skill}.sum": math.fsum(of_skill), f"{skill}.count": float(len(of_skill))}
        return values

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the geometric mean, the arithmetic mean, the skills and the atom counts, in percent."""
        counts = [str(prompt.metadata["atom_count"]) for prompt in prompts]
        by_count = task_means(values["gm"], [f"atoms {count}" for count in counts])
        return {
            "soft_tifa_gm": 100 * float(values["gm"].nanmean()),
            "soft_tifa_am": 100 * float(values["am"].nanmean()),
            **{skill: 100 * _ratio(values, skill) for skill in SKILLS},
            **{name: 100 * by_count[name] for name in sorted(by_count, key=lambda name: int(name.split()[1]))},
        }

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Compare the judge with the published one."""
        return other_judge(judges[LABEL], JUDGE)


def _prompt(where: str, row: Mapping[str, Any]) -> Prompt:
    questions, skills = row["vqa_list"], row["skills"]
    pairs = isinstance(questions, list) and all(
        isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one) for one in questions
    )
    if not isinstance(row["prompt"], str) or not pairs or not questions:
        raise UserError(f"{where}: `prompt` must be a text, and `vqa_list` a list of pairs [question, answer]")
    if not isinstance(skills, list) or len(skills) != len(questions):
        raise UserError(f"{where}: `skills` must be a list with one skill per question")
    unknown = [skill for skill in skills if skill not in SKILLS]
    if unknown:
        raise UserError(f"{where}: unknown skill {unknown[0]!r} (allowed: {', '.join(SKILLS)})")
    count = row.get("atom_count", len(questions))
    if not isinstance(count, int):
        raise UserError(f"{where}: `atom_count` must be an integer, got {count!r}")
    metadata = {"questions": questions, "skills": skills, "atom_count": count}
    return Prompt(row["prompt"], metadata, where)


def _geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean, 0 if a value is 0."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if min(values) > 0 else 0.0


def _ratio(values: Mapping[str, Tensor], skill: str) -> float:
    """Return the mean over the questions of a skill; nan if there are none."""
    if f"{skill}.count" not in values:
        return math.nan
    count = float(values[f"{skill}.count"].nansum())
    return float(values[f"{skill}.sum"].nansum()) / count if count else math.nan
