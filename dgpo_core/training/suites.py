"""The scores of a suite from the scores of its samples, with bootstrap intervals over prompts.

p is the number of prompts, n the number of samples per prompt, B the number of resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgpo_core.contracts import Suite
from dgpo_core.data.prompts import digest
from dgpo_core.draws import Draws
from dgpo_core.errors import PluginError
from dgpo_core.types import Prompt
from dgpo_schemas.suites import SuiteScore

__all__ = ["RESAMPLES", "measured", "resampled_scores", "suite_scores", "unusable", "with_intervals"]

RESAMPLES = 1000
LEVEL = 0.95
LIMITS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def measured(
    suite: Suite, prompts: Sequence[Prompt], samples: Sequence[Mapping[str, Mapping[str, Any]]]
) -> dict[str, Tensor]:
    """Return the numbers that the suite aggregates: name -> float64 [p, n], nan where missing.

    samples: p * n mappings, prompt by prompt, from the label of each reward to its diagnostics with the key `value`,
    which is None if the score is missing.
    """
    members = len(samples) // len(prompts)
    rows = []
    for i, of_sample in enumerate(samples):
        scores = {
            label: math.nan if found["value"] is None else float(found["value"]) for label, found in of_sample.items()
        }
        rows.append(suite.measure(prompts[i // members], scores, of_sample))
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64).view(len(prompts), members)
        for name in names
    }


def unusable(values: Mapping[str, Tensor], count: int) -> list[bool]:
    """Return for each of `count` samples whether the suite has no number of it, whatever its rewards say.

    values: of `measured`.
    """
    if not values:
        return [True] * count
    empty: list[bool] = torch.stack(list(values.values())).isnan().all(0).flatten().tolist()
    return empty


def suite_scores(suite: Suite, values: Mapping[str, Tensor], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Return the suite's scores by name, nan where there are none. Raises PluginError if they are not numbers."""
    scores = dict(suite.aggregate(values, prompts))
    wrong = {name: value for name, value in scores.items() if not isinstance(value, int | float)}
    if not scores or wrong:
        raise PluginError(f"suite {type(suite).__name__}: aggregate must return numbers by name, got {wrong or scores}")
    return {name: float(value) for name, value in scores.items()}


def resampled_scores(
    suite: Suite, values: Mapping[str, Tensor], prompts: Sequence[Prompt], count: int = RESAMPLES
) -> dict[str, np.ndarray]:
    """Return the scores on `count` bootstrap resamples of the prompts: name -> float64 [B], nan where there are none.

    Prompts are drawn with replacement within their task (`Suite.group_by`); the samples of a prompt stay together. The
    key of the draws is the digest of the prompts, so that two models with the same prompts have the same resamples.
    """
    generator = np.random.default_rng(Draws(0).at("suite", digest(prompts)).generator().initial_seed())
    tasks = [str(prompt.metadata.get(suite.group_by, "other")) if suite.group_by else "" for prompt in prompts]
    strata = [np.array([i for i, one in enumerate(tasks) if one == task]) for task in dict.fromkeys(tasks)]
    found: dict[str, list[float]] = {}
    for number in range(count):
        rows = np.concatenate([stratum[generator.integers(0, len(stratum), len(stratum))] for stratum in strata])
        index = torch.from_numpy(rows)
        chosen = {name: value[index] for name, value in values.items()}
        for name, score in suite_scores(suite, chosen, [prompts[i] for i in rows.tolist()]).items():
            found.setdefault(name, [math.nan] * number).append(score)
        for scores in found.values():  # a task that was not drawn has no score
            scores.extend([math.nan] * (number + 1 - len(scores)))
    return {name: np.array(scores) for name, scores in found.items()}


def with_intervals(scores: Mapping[str, float], resampled: Mapping[str, np.ndarray]) -> dict[str, SuiteScore]:
    """Return the scores with their 95 % intervals (percentile method)."""
    return {name: _score(value, resampled.get(name, np.array([]))) for name, value in scores.items()}


def _score(value: float, resampled: np.ndarray) -> SuiteScore:
    known = resampled[~np.isnan(resampled)]
    if math.isnan(value) or not len(known):
        return SuiteScore(value=None if math.isnan(value) else value, low=None, high=None)
    low, high = np.quantile(known, LIMITS)
    return SuiteScore(value=value, low=float(low), high=float(high))
