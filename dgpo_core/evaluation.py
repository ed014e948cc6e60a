"""Evaluation on held-out prompts: the same prompts and the same noise every time, with intervals.

Legend: p prompts, K samples of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.groups import mean_pairwise_distance
from dgpo_core.types import Prompt
from dgpo_schemas.metrics import EvaluationRecord, GroupScore

if TYPE_CHECKING:
    from dgpo_core.policy import View
    from dgpo_core.rollout import Roller
    from dgpo_core.scoring import Scorer

__all__ = ["Evaluation", "evaluate", "interval"]

log = logging.getLogger(__name__)
RESAMPLES = 2000
Role = Literal["target", "guard", "statistic"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One record per reward and per statistic of the media, the first samples as media [N, ...] on the CPU with their
    prompts, and every score."""

    records: list[EvaluationRecord]
    media: Tensor | None
    prompts: list[Prompt]
    samples: list[dict[str, Any]]


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


def evaluate(
    roller: Roller,
    scorer: Scorer,
    prompts: Sequence[Prompt],
    *,
    members: int,
    draws: Draws,
    view: View,
    iteration: int,
    pictures: int = 0,
    interrupt: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Sample every prompt `members` times with the view's weights and score the samples.

    Raises UserError if there are no prompts or if a reward scored none of the samples.
    """
    if not prompts:
        raise UserError("there are no held-out prompts to evaluate on: set prompts.heldout")
    total = len(prompts) * members
    kept: list[Tensor] = []
    done = 0
    # Pictures are spread over the prompts: prompts often come sorted by task.
    shown = min(pictures, len(prompts))
    chosen = [i * len(prompts) // shown * members for i in range(shown)]
    try:
        for rollout in roller.roll_out(prompts, members, draws, view):
            interrupt()
            media = roller.policy.backbone.decode(rollout.x0)
            scorer.submit(media, rollout.prompts)
            here = [i - rollout.start for i in chosen if rollout.start <= i < rollout.start + len(media)]
            if here:
                kept.append(media[here].cpu())
            done += len(media)
            progress(done, total)
        scored = scorer.collect()
    except BaseException:
        scorer.discard()
        raise
    record = partial(_record, prompts=prompts, draws=draws, iteration=iteration, view=view)
    records = []
    for reward in scorer.rewards:
        values = scored.values[reward.label].view(len(prompts), members)
        if bool(values.isnan().all()):
            why = scorer.failure_of(reward.label) or "see the diagnostics of its samples"
            raise UserError(f"evaluation: {reward.label} scored none of {total} samples: {why}")
        role: Role = "guard" if reward.guard else "target"
        records.append(record(reward.label, role, values, group_by=reward.model.group_by))
    if members > 1:
        spread = mean_pairwise_distance(scored.thumbnails.view(len(prompts), members, -1)).double().cpu()
        records.append(record("diversity", "statistic", spread[:, None]))
    for name, statistic in scored.statistics.items():
        records.append(record(name, "statistic", statistic.view(len(prompts), members)))
    samples = [
        {
            "prompt": prompts[i // members].text,
            "member": i % members,
            **{
                label: {**scored.diagnostics[label][i], "value": None if value != value else value}
                for label, value in ((label, float(v[i])) for label, v in scored.values.items())
            },
        }
        for i in range(total)
    ]
    pictured = torch.cat(kept) if kept else None
    return Evaluation(records, pictured, [prompts[i // members] for i in chosen], samples)


def _record(
    label: str,
    role: Role,
    values: Tensor,
    *,
    prompts: Sequence[Prompt],
    draws: Draws,
    iteration: int,
    view: str,
    group_by: str | None = None,
) -> EvaluationRecord:
    """Statistics of one reward, or of one statistic of the media; values float64 [p, K], nan where missing."""
    per_prompt = values.nanmean(1).numpy()
    names = [str(p.metadata.get(group_by, "other")) if group_by else "all" for p in prompts]
    strata = {
        name: np.array([v for v, n in zip(per_prompt, names, strict=True) if n == name and v == v])
        for name in dict.fromkeys(names)
    }
    absent = [name for name, found in strata.items() if not len(found)]
    if absent:
        log.warning("evaluation: no sample of %s could be scored; the mean is over the others", ", ".join(absent))
    strata = {name: found for name, found in strata.items() if len(found)}

    def generator(name: str) -> np.random.Generator:
        return np.random.default_rng(draws.at("bootstrap", label, name).generator().initial_seed())

    groups = {}
    for name, found in strata.items():
        low, high = interval([found], generator(name))
        groups[name] = GroupScore(value=float(found.mean()), low=low, high=high, n=len(found))
    low, high = interval(list(strata.values()), generator("overall"))
    return EvaluationRecord(
        iteration=iteration,
        view=view,
        reward=label,
        role=role,
        value=float(np.mean([group.value for group in groups.values()])),
        low=low,
        high=high,
        n=int(sum(group.n for group in groups.values())),
        missing=int(values.isnan().sum()),
        groups=groups if group_by else {},
    )
