"""The suite contract: a benchmark with its prompts, samples per prompt, rewards and aggregation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dgpo_core.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["Suite", "SuiteFile", "task_means"]


def task_means(values: Tensor, tasks: Sequence[str]) -> dict[str, float]:
    """Return the mean over the scored samples of each task, in order of appearance, nan if a task has none.

    values: float64 [p, n], nan where missing; tasks: the task of each prompt.
    """
    rows: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        rows.setdefault(task, []).append(row)
    return {task: float(values[of_task].nanmean()) for task, of_task in rows.items()}


@dataclass(frozen=True, slots=True)
class SuiteFile:
    """A file that a suite read. digest: SHA-256 of its bytes; published: the digest of the published file, None if it
    is not known."""

    name: str
    digest: str
    published: str | None = None


class Suite(ABC):
    """A benchmark of a model: `dgpo evaluate TARGET --suite NAME`.

    The engine draws `samples_per_prompt` samples of every prompt, scores them with `rewards`, and calls `measure` once
    per sample and `aggregate` on all of them. p is the number of prompts, n the number of samples per prompt.
    """

    samples_per_prompt: ClassVar[int] = 1
    """Number of samples per prompt, n, in the published protocol."""
    group_by: ClassVar[str | None] = None
    """Metadata key of the tasks. The bootstrap of the intervals resamples prompts within their task."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def prompts(self) -> Sequence[Prompt]:
        """Return the prompts, the same ones for the same options and files.

        Raises UserError for a file that is absent or has another format.
        """

    @abstractmethod
    def rewards(self) -> Sequence[RewardBlock]:
        """Return the rewards that score each sample, as in a run file. The engine creates them."""

    @abstractmethod
    def aggregate(self, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> Mapping[str, float]:
        """Return the benchmark's scores by name, the total first; nan for a score without values.

        values: float64 [p, n] for each name that `measure` returned, nan where missing; prompts: the p prompts. For the
        intervals it is called again on prompts drawn with replacement, so it must be a function of its arguments alone.
        """

    def measure(
        self, prompt: Prompt, scores: Mapping[str, float], diagnostics: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, float]:
        """Return the numbers of one sample that `aggregate` needs; names that are absent become nan. By default the
        scores.

        scores: label of each reward to its score, nan if missing; diagnostics: label to the reward's diagnostics.
        """
        return scores

    def files(self) -> Sequence[SuiteFile]:
        """Return the files that the prompts were read from. Called after `prompts`."""
        return ()

    def not_comparable(self, judges: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
        """Return the reasons why the scores cannot be compared with published ones: one sentence each, without a
        period. Called after `prompts`.

        judges: label of each reward to what scored: `use`, `options` with their defaults, and the entries of the
        reward's `provenance`, such as `model`, `revision` and `template`.
        """
        return ()
