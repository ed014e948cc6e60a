"""The suites `drawbench` (arXiv 2205.11487) and `parti` (arXiv 2206.10789): prompts by category, scored by any rewards.

Their authors asked people, so the scores are comparable among models with the same rewards only. The score of a
category is the mean over its samples, the total is the mean over all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dgpo_core.contracts import Suite, SuiteFile, task_means
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.prompts import read_prompts
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_suites.options import DrawBenchOptions, PartiOptions
from dgpo_suites.reading import PromptFile, table

__all__ = ["DrawBenchSuite", "PartiSuite"]

PARTI = "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb"
"""SHA-256 of PartiPrompts.tsv."""
NONE = "all"
"""The category of prompts without one."""


class CategorySuite(Suite):
    """Means by category, for each reward."""

    group_by = "category"
    options: DrawBenchOptions | PartiOptions
    published: tuple[str, ...] = ()

    def files(self) -> list[SuiteFile]:
        """Return the prompt file."""
        return [self._file.file]

    def prompts(self) -> list[Prompt]:
        """Read the file. Raises UserError, naming file and line, for lines of another format."""
        self._file = PromptFile(self.options.file, self.published)
        return self._read(self._file)

    def _read(self, file: PromptFile) -> list[Prompt]:
        raise NotImplementedError

    def rewards(self) -> list[RewardBlock]:
        """Return the rewards of the options."""
        return list(self.options.rewards)

    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
        """Return the mean of each reward, and of each category as `REWARD: CATEGORY`."""
        categories = [str(prompt.metadata["category"]) for prompt in prompts]
        scores: dict[str, float] = {}
        for label, value in values.items():
            scores[label] = float(value.nanmean())
            scores |= {f"{label}: {name}": mean for name, mean in task_means(value, categories).items()}
        return scores

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Say that the published judges are people."""
        return [f"the published judges are people, here {', '.join(judges)}"]


class DrawBenchSuite(CategorySuite):
    """200 prompts of eleven categories."""

    samples_per_prompt = 4
    options: DrawBenchOptions

    def _read(self, file: PromptFile) -> list[Prompt]:
        if file.path.suffix.lower() != ".csv":
            return _without_repetitions(file.path)
        rows = table(file, ("Prompts", "Category"), ",")
        return [
            Prompt(row["Prompts"].strip(), {"category": row["Category"].strip()}, where)
            for where, row in rows
            if row["Prompts"].strip()
        ]


class PartiSuite(CategorySuite):
    """1,632 prompts of twelve categories."""

    samples_per_prompt = 1
    options: PartiOptions
    published = (PARTI,)

    def _read(self, file: PromptFile) -> list[Prompt]:
        rows = table(file, ("Prompt", "Category", "Challenge"), "\t")
        return [
            Prompt(row["Prompt"].strip(), {"category": row["Category"], "challenge": row["Challenge"]}, where)
            for where, row in rows
        ]


def _without_repetitions(path: Path) -> list[Prompt]:
    """Read a prompt file; a text that is repeated, once for each sample, is one prompt."""
    try:
        records = read_prompts(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    found: dict[str, Prompt] = {}
    for where, record in records.items():
        category = str(record.metadata.get("category", NONE))
        found.setdefault(record.prompt, Prompt(record.prompt, {"category": category}, where))
    return list(found.values())
