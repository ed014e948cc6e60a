"""The lines of evaluations.jsonl: means over prompts, by task and by source, with bootstrap intervals.

Legend: p prompts, K samples of each.
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
    """Bootstrap interval of the unweighted mean of the strata's means; each stratum holds one value per prompt.

    Prompts are resampled within their stratum (samples of a prompt stay together), percentile method.
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
    """Statistics of one reward, or of one statistic of the media; values, and the components by name, float64 [p, K],
    nan where missing."""
    names = [str(p.metadata.get(group_by, "other")) if group_by else "all" for p in prompts]
    strata = _strata(values, names)
    absent = [name for name, found in strata.items() if not len(found)]
    if absent:
        log.warning("evaluation: no sample of %s could be scored; the mean is over the others", ", ".join(absent))
    strata = {name: found for name, found in strata.items() if len(found)}

    key = draws.at("bootstrap", DRAW_KEYS.get(label, label))

    def generator(name: str) -> np.random.Generator:
        return np.random.default_rng(key.at(name).generator().initial_seed())

    groups = {}
    for name, found in strata.items():
        low, high = interval([found], generator(name))
        groups[name] = GroupScore(value=float(found.mean()), low=low, high=high, n=len(found))
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
            name: float(np.mean([found.mean() for found in _strata(subscore, names).values() if len(found)]))
            for name, subscore in subscores.items()
            if not bool(subscore.isnan().all())
        },
    )


def _of_source(values: Tensor, names: Sequence[str], generator: np.random.Generator) -> GroupScore:
    """The score over the prompts of one source: the unweighted mean of its tasks."""
    strata = [found for found in _strata(values, names).values() if len(found)]
    low, high = interval(strata, generator)
    mean = float(np.mean([found.mean() for found in strata]))
    return GroupScore(value=mean, low=low, high=high, n=sum(len(found) for found in strata))


def _strata(values: Tensor, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Values float64 [p, K] as means of the prompts that have any, by the task that each belongs to."""
    per_prompt = values.nanmean(1).numpy()
    return {
        name: np.array([v for v, n in zip(per_prompt, names, strict=True) if n == name and v == v])
        for name in dict.fromkeys(names)
    }
