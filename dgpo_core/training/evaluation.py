"""Evaluation on held-out prompts: the same prompts and the same noise every time, with intervals.

Legend: p prompts, K samples of each.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.distributed.comparing import Layout
from dgpo_core.distributed.partitioning import exchange_tensors, partition_units
from dgpo_core.distributed.processes import Processes, cut
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import samplers_such_that
from dgpo_core.flow.sizes import runs
from dgpo_core.training.evaluation_records import Role, evaluation_record
from dgpo_core.training.memory import decoded_media
from dgpo_core.training.monitors import step_statistics
from dgpo_core.training.scored import diversity, merged, not_finite, reasons_of
from dgpo_core.training.scores import subscore_values
from dgpo_core.types import Prompt
from dgpo_schemas.metrics import EvaluationRecord

if TYPE_CHECKING:
    from dgpo_core.training.engine import Engine
    from dgpo_core.training.policy import ModelName
    from dgpo_core.training.reward_calls import Reward
    from dgpo_core.training.rollout import RolloutSampler
    from dgpo_core.training.scored import ScoredSamples
    from dgpo_core.training.scoring import Scorer

__all__ = ["Evaluation", "Evaluator", "ManyStepSolve", "NotFiniteError"]


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ManyStepSolve:
    """A rollout sampler with many steps, and how many prompts to draw with it."""

    rollout_sampler: RolloutSampler
    prompts: int

    @staticmethod
    def of(engine: Engine, guidance: float | None = None, micro_batch: int | None = None) -> ManyStepSolve | None:
        """As the run file says, if it asks for it. Raises UserError for a random sampler: its solves need not agree."""
        section = engine.config.evaluation.many_step
        if section is None:
            return None
        if not engine.evaluation_sampler.deterministic:
            used = engine.config.evaluation.sampler or engine.config.rollout.sampler
            raise UserError(
                "evaluation.many_step: compares samples in few steps with the same samples in many, but the sampler of "
                f"evaluation, {used.use}, is random; set evaluation.sampler to one that is not "
                f"({samplers_such_that(engine.registry, lambda kind: kind.deterministic)}), or leave many_step out"
            )
        rollout_sampler = engine.evaluation_rollout_sampler(
            steps=section.steps, guidance=guidance, micro_batch=micro_batch
        )
        return ManyStepSolve(rollout_sampler, section.prompts)


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


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What is evaluated, and with what; `evaluate` does it with the weights of a view.

    prompts: p of them; members: samples K of each; draws: key of their noise; images: prompts whose first sample is
    returned; many_step: also draw some samples in many steps, from the same noise, and compare
    (`monitors.step_statistics`); processes: those that share the samples; each of them gets the whole evaluation.
    exact: they share whole micro-batches, for numbers that are the same to the bit whatever their number; else samples,
    as evenly as can be. Raises UserError if there are no prompts."""

    rollout_sampler: RolloutSampler
    scorer: Scorer
    prompts: Sequence[Prompt]
    members: int
    draws: Draws
    images: int = 0
    many_step: ManyStepSolve | None = None
    processes: Processes = field(default_factory=Processes)
    exact: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("there are no held-out prompts to evaluate on: set prompts.heldout")

    def evaluate(
        self,
        model: ModelName,
        iteration: int,
        *,
        interrupt: Callable[[], None] = lambda: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Evaluation:
        """Sample every prompt with the view's weights, score the samples and average; `iteration` is written down.

        interrupt: called between micro-batches, and may raise; progress: with samples done and their number, of this
        process. Raises UserError if a reward scored none of the samples; NotFiniteError if that is because no media
        are finite.
        """
        scored, shown, compared = self._draw(model, interrupt, progress)
        self._hear_of_failures()

        def record(label: str, role: Role, values: Tensor, prompts: Sequence[Prompt], **more: Any) -> EvaluationRecord:
            return evaluation_record(
                label, role, values, prompts=prompts, draws=self.draws, iteration=iteration, model=model, **more
            )

        records = []
        for reward in self.scorer.rewards:
            if rows := [i for i, prompt in enumerate(self.prompts) if reward.asks(prompt)]:
                values = self._values(reward, scored, rows)
                role: Role = "monitor" if reward.monitor else "target"
                more = {"group_by": reward.model.group_by, "subscores": self._subscores(reward, scored, rows)}
                records.append(record(reward.label, role, values, [self.prompts[i] for i in rows], **more))
        for name, values in self._statistics(scored):
            records.append(record(name, "statistic", values, self.prompts))
        if self.many_step is not None:
            chosen = [self.prompts[i] for i in self._solved_twice]
            for name, values in self._step_statistics(self.many_step, compared, model, interrupt):
                records.append(record(name, "statistic", values, chosen))
        media = self.processes.all_gather_tensors(shown)
        return Evaluation(records, media, [self.prompts[i] for i in self._shown], self._lines(scored))

    def _hear_of_failures(self) -> None:
        """Have every process know what failed in the others, of which the main one alone is heard."""
        known = self.scorer.failures
        for reason in [reason for reported in self.processes.all_gather_object(list(known)) for reason in reported]:
            if reason not in known:
                known.append(reason)
                log.warning("reward failed in another process: %s", reason)

    @property
    def _shown(self) -> list[int]:
        """Numbers of the prompts whose first sample is returned."""
        return _evenly_spaced(len(self.prompts), self.images)

    @property
    def _solved_twice(self) -> list[int]:
        """Numbers of the prompts whose first sample is drawn in many steps too."""
        return _evenly_spaced(len(self.prompts), self.many_step.prompts if self.many_step else 0)

    @cached_property
    def _samples(self) -> list[Sequence[int]]:
        """Each process's samples, as numbers of the flat order."""
        return self._cut(self.rollout_sampler, self.prompts, self.members)

    def _cut(self, rollout_sampler: RolloutSampler, prompts: Sequence[Prompt], members: int) -> list[Sequence[int]]:
        count = self.processes.count
        if self.exact:
            return [*partition_units(rollout_sampler.micro_batches(prompts, members), count)]
        return [cut(len(prompts) * members, rank, count) for rank in range(count)]

    def _draw(
        self, model: ModelName, interrupt: Callable[[], None], progress: Callable[[int, int], None]
    ) -> tuple[ScoredSamples, list[Tensor], list[Tensor]]:
        """Every process draws its samples; each micro-batch is scored while the next one is drawn. All scores, and the
        first samples that this process has drawn of prompts to be shown and of prompts to be solved twice."""
        processes, scorer, samples = self.processes, self.scorer, self._samples
        own = samples[processes.rank]
        shown: list[Tensor] = []
        compared: list[Tensor] = []
        try:
            scorer.expect(Layout(self.members, self.draws, samples, processes.rank))
            with processes.together(self.rollout_sampler.policy.finish):
                for rollout in self.rollout_sampler.sample_groups(
                    self.prompts, self.members, self.draws, model, samples=own
                ):
                    interrupt()
                    media = decoded_media(self.rollout_sampler.policy.backbone, rollout)
                    scorer.submit(media, rollout.prompts, interrupt, rollout.samples)
                    shown += _first_members(media, rollout.samples, self._shown, self.members)
                    compared += _first_members(media, rollout.samples, self._solved_twice, self.members)
                    progress(rollout.samples[-1] + 1 - own[0], len(own))
            scorer.complete(processes, interrupt)
            with processes.together():
                found_here = scorer.collect(interrupt) if own else None
            return merged(found_here, processes, samples), shown, compared
        except BaseException:
            scorer.discard()
            raise

    def _values(self, reward: Reward, scored: ScoredSamples, rows: Sequence[int]) -> Tensor:
        """A reward's scores [rows, K]. Raises UserError if there are none."""
        values = scored.values[reward.label].view(len(self.prompts), self.members)[rows]
        if not bool(values.isnan().all()):
            return values
        if not_finite([reward], scored):
            raise NotFiniteError(f"evaluation: the media of all {values.numel()} samples are not finite")
        said = self.scorer.failure_of(reward.label) or reasons_of([reward], scored)
        why = said or "see the diagnostics of its samples"
        raise UserError(f"evaluation: {reward.label} scored none of {values.numel()} samples: {why}")

    def _subscores(self, reward: Reward, scored: ScoredSamples, rows: Sequence[int]) -> dict[str, Tensor]:
        """The components that a reward names, each [rows, K]."""
        named = subscore_values(scored.diagnostics[reward.label], scored.values[reward.label])
        return {name: one.view(len(self.prompts), self.members)[rows] for name, one in named.items()}

    def _statistics(self, scored: ScoredSamples) -> Iterator[tuple[str, Tensor]]:
        """Statistics of the media by name, [p, 1] or [p, K]."""
        if self.members > 1:
            yield "diversity", diversity(scored.thumbnails, len(self.prompts)).double().cpu()[:, None]
        for name, statistic in scored.statistics.items():
            yield name, statistic.view(len(self.prompts), self.members)

    def _step_statistics(
        self, many_step: ManyStepSolve, compared: Sequence[Tensor], model: ModelName, interrupt: Callable[[], None]
    ) -> Iterator[tuple[str, Tensor]]:
        """The same samples in many steps, `compared` with those in few: statistics by name, each [prompts, 1]."""
        drawn_by = {
            i: rank for i in self._solved_twice for rank, own in enumerate(self._samples) if i * self.members in own
        }
        solved_by = drawn_by
        if self.exact:
            again = self._cut(many_step.rollout_sampler, [self.prompts[i] for i in self._solved_twice], 1)
            solved_by = {self._solved_twice[k]: rank for rank, own in enumerate(again) for k in own}
            here = [i for i, rank in drawn_by.items() if rank == self.processes.rank]
            held = dict(zip(here, compared, strict=True))
            compared = list(exchange_tensors(self.processes, held, drawn_by, solved_by).values())
        mine = [i for i, rank in solved_by.items() if rank == self.processes.rank]
        media: list[Tensor] = []
        with self.processes.together(many_step.rollout_sampler.policy.finish):
            for rollout in many_step.rollout_sampler.sample_groups(
                [self.prompts[i] for i in mine], 1, self.draws, model, places=mine
            ):
                interrupt()
                media += decoded_media(many_step.rollout_sampler.policy.backbone, rollout).cpu()
        found = _joined_step_statistics(compared, media)
        said = self.processes.all_gather_object(
            {name: statistic.double().tolist() for name, statistic in found.items()}
        )
        for name in next(part for part in said if part):
            values = torch.tensor([v for part in said for v in part.get(name, ())], dtype=torch.float64)
            yield name, values[:, None]

    def _lines(self, scored: ScoredSamples) -> list[dict[str, Any]]:
        """Every sample's scores and diagnostics, prompt after prompt."""
        values = {label: v.tolist() for label, v in scored.values.items()}
        lines = []
        for i in range(len(self.prompts) * self.members):
            prompt = self.prompts[i // self.members]
            line: dict[str, Any] = {"prompt": prompt.text, "member": i % self.members}
            line |= {"source": prompt.source} if prompt.source else {}
            for label, of_label in values.items():
                value = None if of_label[i] != of_label[i] else of_label[i]
                line[label] = {**scored.diagnostics[label][i], "value": value}
            lines.append(line)
        return lines


def _evenly_spaced(total: int, count: int) -> list[int]:
    """At most `count` numbers below `total`, evenly spread: prompts often come sorted by task."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def _first_members(media: Tensor, samples: Sequence[int], prompts: Sequence[int], members: int) -> list[Tensor]:
    """Of a micro-batch of these samples the first ones of these prompts, on the CPU."""
    here = [samples.index(p * members) for p in prompts if p * members in samples]
    return list(media[here].cpu()) if here else []


def _joined_step_statistics(media: Sequence[Tensor], many_step: Sequence[Tensor]) -> dict[str, Tensor]:
    """`monitors.step_statistics` of media that may differ in size; empty if there are none."""
    found = [
        step_statistics(torch.stack(list(media[run])), torch.stack(list(many_step[run])))
        for run in runs([one.shape for one in media])
    ]
    return {name: torch.cat([part[name] for part in found]) for name in (found[0] if found else ())}
