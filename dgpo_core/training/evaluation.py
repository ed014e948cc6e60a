"""Evaluation on held-out prompts: the same prompts and the same noise every time, with intervals.

Legend: p prompts, K samples of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgpo_core.distributed.comparing import Layout
from dgpo_core.distributed.processes import Processes, cut
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.groups import by_source
from dgpo_core.flow.sizes import runs
from dgpo_core.training.guards import step_statistics
from dgpo_core.training.memory import decoded_media
from dgpo_core.training.scored import diversity, merged, not_finite, reasons_of
from dgpo_core.training.scores import part_values
from dgpo_core.types import Prompt
from dgpo_schemas.metrics import EvaluationRecord, GroupScore

if TYPE_CHECKING:
    from dgpo_core.training.engine import Engine
    from dgpo_core.training.policy import View
    from dgpo_core.training.rollout import Roller
    from dgpo_core.training.scoring import Scorer

__all__ = ["Evaluation", "Finer", "NotFiniteError", "evaluate", "interval"]

log = logging.getLogger(__name__)
RESAMPLES = 2000
Role = Literal["target", "guard", "statistic"]


@dataclass(frozen=True, slots=True)
class Finer:
    """A roller with many steps, and how many prompts to draw with it."""

    roller: Roller
    prompts: int

    @staticmethod
    def of(engine: Engine, guidance: float | None = None) -> Finer | None:
        """As the run file says, if it asks for it. Raises UserError for a random sampler: its solves need not agree."""
        section = engine.config.evaluation.finer
        if section is None:
            return None
        if not engine.evaluation_sampler.deterministic:
            used = engine.config.evaluation.sampler or engine.config.rollout.sampler
            raise UserError(
                "evaluation.finer: compares samples in few steps with the same samples in many, but the sampler of "
                f"evaluation, {used.use}, is random; set evaluation.sampler: flow-euler, or leave it out"
            )
        return Finer(engine.evaluation_roller(steps=section.steps, guidance=guidance), section.prompts)


class NotFiniteError(UserError):
    """Nothing can be scored: all media have numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One record per reward and per statistic of the media, first samples of some prompts as media, which may differ in
    size, on the CPU with these prompts, and every score."""

    records: list[EvaluationRecord]
    media: Sequence[Tensor]
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
    finer: Finer | None = None,
    processes: Processes | None = None,
    interrupt: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Sample every prompt `members` times with the view's weights and score the samples.

    finer: also draw some samples in many steps, from the same noise, and compare (`guards.step_statistics`).
    processes: those that share the samples; each of them gets the whole evaluation.
    Raises UserError if there are no prompts or if a reward scored none of the samples; NotFiniteError if that is
    because no media are finite.
    """
    if not prompts:
        raise UserError("there are no held-out prompts to evaluate on: set prompts.heldout")
    total = len(prompts) * members
    processes = processes or Processes()
    samples = [cut(total, rank, processes.count) for rank in range(processes.count)]
    own = samples[processes.rank]
    kept: list[Tensor] = []
    compared: list[Tensor] = []
    shown = _spread(len(prompts), pictures)
    solved_twice = _spread(len(prompts), finer.prompts if finer else 0)
    try:
        scorer.expect(Layout(members, draws, samples, processes.rank))
        with processes.together():
            for rollout in roller.roll_out(prompts, members, draws, view, samples=own):
                interrupt()
                media = decoded_media(roller.policy.backbone, rollout)
                scorer.submit(media, rollout.prompts, interrupt, rollout.samples)
                kept += _first_members(media, rollout.samples, shown, members)
                compared += _first_members(media, rollout.samples, solved_twice, members)
                progress(rollout.samples[-1] + 1 - own[0], len(own))
        scorer.complete(processes, interrupt)
        with processes.together():
            found_here = scorer.collect(interrupt) if own else None
        scored = merged(found_here, processes, samples)
    except BaseException:
        scorer.discard()
        raise
    record = partial(_record, prompts=prompts, draws=draws, iteration=iteration, view=view)
    records = []
    for reward in scorer.rewards:
        rows = [i for i, prompt in enumerate(prompts) if reward.asks(prompt)]
        if not rows:
            continue
        values = scored.values[reward.label].view(len(prompts), members)[rows]
        if bool(values.isnan().all()):
            if not_finite([reward], scored):
                raise NotFiniteError(f"evaluation: the media of all {values.numel()} samples are not finite")
            why = (
                scorer.failure_of(reward.label) or reasons_of([reward], scored) or "see the diagnostics of its samples"
            )
            raise UserError(f"evaluation: {reward.label} scored none of {values.numel()} samples: {why}")
        role: Role = "guard" if reward.guard else "target"
        named = part_values(scored.diagnostics[reward.label], scored.values[reward.label])
        shaped = {name: one.view(len(prompts), members)[rows] for name, one in named.items()}
        asked = [prompts[i] for i in rows]
        records.append(record(reward.label, role, values, prompts=asked, group_by=reward.model.group_by, parts=shaped))
    if members > 1:
        spread = diversity(scored.thumbnails, len(prompts)).double().cpu()
        records.append(record("diversity", "statistic", spread[:, None]))
    for name, statistic in scored.statistics.items():
        records.append(record(name, "statistic", statistic.view(len(prompts), members)))
    if finer is not None:
        some = [prompts[i] for i in solved_twice]
        parts: list[Tensor] = []
        with processes.together():
            mine = [i for i in solved_twice if i * members in own]
            for rollout in finer.roller.roll_out([prompts[i] for i in mine], 1, draws, view, places=mine):
                interrupt()
                parts += decoded_media(finer.roller.policy.backbone, rollout).cpu()
        found = _step_statistics(compared, parts)
        said = processes.everyone({name: statistic.double().tolist() for name, statistic in found.items()})
        for name in next(part for part in said if part):
            statistic = torch.tensor([v for part in said for v in part.get(name, ())], dtype=torch.float64)
            records.append(record(name, "statistic", statistic[:, None], prompts=some))
    scores = [
        {
            "prompt": prompts[i // members].text,
            "member": i % members,
            **({"source": prompts[i // members].source} if prompts[i // members].source else {}),
            **{
                label: {**scored.diagnostics[label][i], "value": None if value != value else value}
                for label, value in ((label, float(v[i])) for label, v in scored.values.items())
            },
        }
        for i in range(total)
    ]
    return Evaluation(records, processes.gather_each(kept), [prompts[i] for i in shown], scores)


def _spread(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread: prompts often come sorted by task."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def _first_members(media: Tensor, samples: Sequence[int], prompts: Sequence[int], members: int) -> list[Tensor]:
    """Of a micro-batch of these samples the first ones of these prompts, on the CPU."""
    here = [samples.index(p * members) for p in prompts if p * members in samples]
    return list(media[here].cpu()) if here else []


def _step_statistics(media: Sequence[Tensor], finer: Sequence[Tensor]) -> dict[str, Tensor]:
    """`guards.step_statistics` of media that may differ in size; empty if there are none."""
    found = [
        step_statistics(torch.stack(list(media[run])), torch.stack(list(finer[run])))
        for run in runs([one.shape for one in media])
    ]
    return {name: torch.cat([part[name] for part in found]) for name in (found[0] if found else ())}


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
    parts: Mapping[str, Tensor] = MappingProxyType({}),
) -> EvaluationRecord:
    """Statistics of one reward, or of one statistic of the media; values, and the parts by name, float64 [p, K], nan
    where missing."""
    names = [str(p.metadata.get(group_by, "other")) if group_by else "all" for p in prompts]
    strata = _strata(values, names)
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
        sources={
            source: _of_source(values[rows], [names[i] for i in rows], generator(f"source {source}"))
            for source, rows in by_source(prompts).items()
            if source and not bool(values[rows].isnan().all())
        },
        parts={
            name: float(np.mean([found.mean() for found in _strata(part, names).values() if len(found)]))
            for name, part in parts.items()
            if not bool(part.isnan().all())
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
