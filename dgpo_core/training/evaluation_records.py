"""Records of evaluations.jsonl: means over prompts, per task and per source, with bootstrap intervals.

p is the number of prompts, K the number of samples per prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
from torch import Tensor

from dgpo_core.draws import Draws
from dgpo_core.flow.groups import by_source
from dgpo_core.types import Prompt
from dgpo_schemas.metrics import EvaluationRecord, GroupScore

__all__ = ["Role", "evaluation_record", "interval"]

log = logging.getLogger(__name__)
RESAMPLES = 2000
DRAW_KEYS = {"many_step_sharpness": "finer_sharpness"}
"""The keys of draws that differ from the name of their statistic. The text of a key never changes when a statistic is
renamed, since the intervals would change with it."""
Role = Literal["target", "monitor", "statistic"]


def interval(strata: Sequence[np.ndarray], generator: np.random.Generator, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval (percentile method) of the unweighted mean of the strata's means.

    Each stratum holds one value per prompt. Prompts are resampled within their stratum; samples of a prompt stay
    together.
    """
    means = np.zeros(RESAMPLES)
    for values in strata:
        picks = generator.integers(0, len(values), size=(RESAMPLES, len(values)))
        means += values[picks].mean(1) / len(strata)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluation_record(
    label: str,
    role: Role,
    values: Tensor,
    *,
    prompts: Sequence[Prompt],
    draws: Draws,
    iteration: int,
    model: str,
    group_by: str | None = None,
    subscores: Mapping[str, Tensor] = MappingProxyType({}),
) -> EvaluationRecord:
    """Build the record of one reward or media statistic.

    values, and each entry of subscores: float64 [p, K], nan where missing.
    """
    names = [str(p.metadata.get(group_by, "other")) if group_by else "all" for p in prompts]
    strata = _strata(values, names)
    absent = [name for name, means in strata.items() if not len(means)]
    if absent:
        log.warning("evaluation: no sample of %s could be scored; the mean is over the others", ", ".join(absent))
    strata = {name: means for name, means in strata.items() if len(means)}

    key = draws.at("bootstrap", DRAW_KEYS.get(label, label))

    def generator(name: str) -> np.random.Generator:
        return np.random.default_rng(key.at(name).generator().initial_seed())

    groups = {}
    for name, means in strata.items():
        low, high = interval([means], generator(name))
        groups[name] = GroupScore(value=float(means.mean()), low=low, high=high, n=len(means))
    low, high = interval(list(strata.values()), generator("overall"))
    return EvaluationRecord(
        iteration=iteration,
        model=model,
        reward=label,
        role=role,
        value=float(np.mean([group.value for group in groups.values()])),
        low=low,
        high=high,
        n=int(sum(group.n for group in groups.values())),
        missing=int(values.isnan().sum()),
        groups=groups if group_by else {},
        sources={
            source: _of_source(values[rows], [names[i] for i in rows], generator(f"source {source}"))
            for source, rows in by_source(prompts).items()
            if source and not bool(values[rows].isnan().all())
        },
        subscores={
            name: float(np.mean([means.mean() for means in _strata(subscore, names).values() if len(means)]))
            for name, subscore in subscores.items()
            if not bool(subscore.isnan().all())
        },
    )


def _of_source(values: Tensor, names: Sequence[str], generator: np.random.Generator) -> GroupScore:
    """Score the prompts of one source: the unweighted mean over its tasks."""
    strata = [means for means in _strata(values, names).values() if len(means)]
    low, high = interval(strata, generator)
    mean = float(np.mean([means.mean() for means in strata]))
    return GroupScore(value=mean, low=low, high=high, n=sum(len(means) for means in strata))


def _strata(values: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Average values, float64 [p, K], per prompt, and group the means by task; prompts without values are omitted."""
    per_prompt = values.nanmean(1).numpy()
    return {
        name: np.array([v for v, n in zip(per_prompt, names, strict=True) if n == name and v == v])
        for name in dict.fromkeys(names)
    }
