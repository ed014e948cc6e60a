"""Evaluation on held-out prompts, with the same prompts and noise every time, and confidence intervals.

p is the number of prompts, K the number of samples per prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from dgpo_core.transfers import HostCopy, in_float64, to_device
from dgpo_core.types import Prompt
from dgpo_schemas.metrics import EvaluationRecord
from dgpo_schemas.sections.evaluation import WORDING

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
    """A rollout sampler with many solver steps, and the number of prompts to sample with it."""

    rollout_sampler: RolloutSampler
    prompts: int

    @staticmethod
    def of(engine: Engine, guidance: float | None = None, micro_batch: int | None = None) -> ManyStepSolve | None:
        """Build from evaluation.many_step; None if it is not set.

        Raises UserError for a stochastic sampler, whose few-step and many-step solutions need not agree.
        """
        section = engine.config.evaluation.many_step
        if section is None:
            return None
        if not engine.evaluation_sampler.deterministic:
            used = engine.config.evaluation.sampler or engine.config.rollout.sampler
            raise UserError(
                "evaluation.many_step: compares the same samples in few and in many steps, but the evaluation sampler "
                f"{used.use} is random; set evaluation.sampler to a deterministic one "
                f"({samplers_such_that(engine.registry, lambda kind: kind.deterministic)}), or remove this section"
            )
        rollout_sampler = engine.evaluation_rollout_sampler(
            steps=section.steps, guidance=guidance, micro_batch=micro_batch
        )
        return ManyStepSolve(rollout_sampler, section.prompts)


class NotFiniteError(UserError):
    """The media of all samples contain nan or inf, so nothing can be scored."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of an evaluation.

    records: one per reward and per media statistic; media: first samples of some prompts, on the CPU, possibly of
    different sizes; prompts: the prompts of `media`; samples: the scores of every sample.
    """

    records: list[EvaluationRecord]
    media: Sequence[Tensor]
    prompts: list[Prompt]
    samples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Samples held-out prompts and scores them; `evaluate` does so with one of the models.

    prompts: p prompts; members: samples per prompt, K; draws: key of the noise; images: number of prompts whose first
    sample is returned; many_step: also draw some samples from the same noise in many steps and compare
    (`monitors.step_statistics`); reworded: index of a prompt to the same in other words, also to be sampled, with the
    same noise; places: the numbers of the prompts in the keys of the noise, by default 0, 1, ...; processes: the ranks
    that the samples are split across; every rank gets the complete evaluation. exact: split whole micro-batches, so
    that results are bit-identical for any world size; otherwise split samples as evenly as possible. Raises UserError
    if there are no prompts.
    """

    rollout_sampler: RolloutSampler
    scorer: Scorer
    prompts: Sequence[Prompt]
    members: int
    draws: Draws
    images: int = 0
    many_step: ManyStepSolve | None = None
    reworded: Mapping[int, Prompt] = field(default_factory=dict)
    places: Sequence[int] | None = None
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
        """Sample every prompt with a model, score the samples and average.

        iteration: stored in the records; interrupt: called between micro-batches, may raise; progress: called with the
        number of finished samples and the total of this rank. Raises UserError if a reward scored none of the samples,
        NotFiniteError if the reason is that no media are finite.
        """
        scored, shown, compared = self._draw(model, interrupt, progress)
        self._gather_failures()

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
        for label, values, asked in self._wording(scored, model, interrupt) if self.reworded else ():
            records.append(record(label, "monitor", values, [self.prompts[i] for i in asked]))
        media = self.processes.all_gather_tensors(shown)
        return Evaluation(records, media, [self.prompts[i] for i in self._shown], self._lines(scored))

    def _gather_failures(self) -> None:
        """Share reward failures among all ranks, because only the main process reports them."""
        known = self.scorer.failures
        for reason in [reason for reported in self.processes.all_gather_object(list(known)) for reason in reported]:
            if reason not in known:
                known.append(reason)
                log.warning("reward failed in another process: %s", reason)

    @property
    def _shown(self) -> list[int]:
        """Indices of the prompts whose first sample is returned."""
        return _evenly_spaced(len(self.prompts), self.images)

    @property
    def _solved_twice(self) -> list[int]:
        """Indices of the prompts whose first sample is also drawn in many steps."""
        return _evenly_spaced(len(self.prompts), self.many_step.prompts if self.many_step else 0)

    @cached_property
    def _samples(self) -> list[Sequence[int]]:
        """The sample numbers of each rank, in flat order."""
        return self._split(self.rollout_sampler, self.prompts, self.members)

    def _split(self, rollout_sampler: RolloutSampler, prompts: Sequence[Prompt], members: int) -> list[Sequence[int]]:
        count = self.processes.count
        if self.exact:
            return [*partition_units(rollout_sampler.micro_batches(prompts, members), count)]
        return [cut(len(prompts) * members, rank, count) for rank in range(count)]

    def _draw(
        self, model: ModelName, interrupt: Callable[[], None], progress: Callable[[int, int], None]
    ) -> tuple[ScoredSamples, list[Tensor], list[Tensor]]:
        """Draw this rank's samples; each micro-batch is scored while the next one is drawn.

        Returns the scores of all ranks, and this rank's first samples of the prompts to show and of the prompts to
        solve twice.
        """
        processes, scorer, samples = self.processes, self.scorer, self._samples
        local = samples[processes.rank]
        shown: list[HostCopy] = []
        compared: list[HostCopy] = []
        try:
            scorer.expect(Layout(self.members, self.draws, samples, processes.rank))
            with processes.together(self.rollout_sampler.policy.finish):
                for rollout in self.rollout_sampler.sample_groups(
                    self.prompts, self.members, self.draws, model, places=self.places, samples=local
                ):
                    interrupt()
                    media = decoded_media(self.rollout_sampler.policy.backbone, rollout)
                    scorer.submit(media, rollout.prompts, interrupt, rollout.samples)
                    shown += _first_members(media, rollout.samples, self._shown, self.members)
                    compared += _first_members(media, rollout.samples, self._solved_twice, self.members)
                    progress(rollout.samples[-1] + 1 - local[0], len(local))
            scorer.complete(processes, interrupt)
            with processes.together():
                local_scores = scorer.collect(interrupt) if local else None
            return merged(local_scores, processes, samples), _joined(shown), _joined(compared)
        except BaseException:
            scorer.discard()
            raise

    def _values(self, reward: Reward, scored: ScoredSamples, rows: Sequence[int]) -> Tensor:
        """The scores of a reward, [rows, K]. Raises UserError if all are missing."""
        values = scored.values[reward.label].view(len(self.prompts), self.members)[rows]
        if not bool(values.isnan().all()):
            return values
        if not_finite([reward], scored):
            raise NotFiniteError(f"evaluation: the media of all {values.numel()} samples are not finite")
        reason = self.scorer.failure_of(reward.label) or reasons_of([reward], scored)
        reason = reason or "see the diagnostics of its samples"
        raise UserError(f"evaluation: {reward.label} scored none of {values.numel()} samples: {reason}")

    def _subscores(self, reward: Reward, scored: ScoredSamples, rows: Sequence[int]) -> dict[str, Tensor]:
        """The subscores of a reward by name, each [rows, K]."""
        named = subscore_values(scored.diagnostics[reward.label], scored.values[reward.label])
        return {name: values.view(len(self.prompts), self.members)[rows] for name, values in named.items()}

    def _statistics(self, scored: ScoredSamples) -> Iterator[tuple[str, Tensor]]:
        """Media statistics by name, [p, 1] or [p, K]."""
        if self.members > 1:
            yield "diversity", in_float64(diversity(scored.thumbnails, len(self.prompts))).cpu()[:, None]
        for name, statistic in scored.statistics.items():
            yield name, statistic.view(len(self.prompts), self.members)

    def _step_statistics(
        self, many_step: ManyStepSolve, compared: Sequence[Tensor], model: ModelName, interrupt: Callable[[], None]
    ) -> Iterator[tuple[str, Tensor]]:
        """Draw samples again in many steps and compare them with `compared`, the same samples in few steps.

        Yields statistics by name, each [prompts, 1].
        """
        drawn_by = {
            i: rank for i in self._solved_twice for rank, part in enumerate(self._samples) if i * self.members in part
        }
        solved_by = drawn_by
        if self.exact:
            split = self._split(many_step.rollout_sampler, [self.prompts[i] for i in self._solved_twice], 1)
            solved_by = {self._solved_twice[k]: rank for rank, part in enumerate(split) for k in part}
            drawn = [i for i, rank in drawn_by.items() if rank == self.processes.rank]
            local = dict(zip(drawn, compared, strict=True))
            compared = list(exchange_tensors(self.processes, local, drawn_by, solved_by).values())
        indices = [i for i, rank in solved_by.items() if rank == self.processes.rank]
        solved: list[HostCopy] = []
        with self.processes.together(many_step.rollout_sampler.policy.finish):
            for rollout in many_step.rollout_sampler.sample_groups(
                [self.prompts[i] for i in indices], 1, self.draws, model, places=indices
            ):
                interrupt()
                solved.append(HostCopy(decoded_media(many_step.rollout_sampler.policy.backbone, rollout)))
        statistics = _joined_step_statistics(compared, _joined(solved))
        gathered = self.processes.all_gather_object(
            {name: in_float64(statistic).tolist() for name, statistic in statistics.items()}
        )
        for name in next(part for part in gathered if part):
            values = torch.tensor([v for part in gathered for v in part.get(name, ())], dtype=torch.float64)
            yield name, values[:, None]

    def _wording(
        self, scored: ScoredSamples, model: ModelName, interrupt: Callable[[], None]
    ) -> Iterator[tuple[str, Tensor, Sequence[int]]]:
        """Draw and score the reworded prompts. Yields, for each target, its scores in other words [p, K], and their
        difference to those in the prompts' own words [p, 1], nan where missing, with the indices of the prompts: the p
        reworded ones that the target is asked about."""
        rows = list(self.reworded)
        other = replace(
            self, prompts=list(self.reworded.values()), places=rows, reworded={}, images=0, many_step=None
        )  # fmt: skip
        found, *_ = other._draw(model, interrupt, lambda done, total: None)
        for reward in self.scorer.rewards:
            asked = [place for place, i in enumerate(rows) if reward.asks(self.prompts[i])]
            if reward.monitor or not asked:
                continue
            mine = [rows[place] for place in asked]
            own = scored.values[reward.label].view(len(self.prompts), self.members)[mine]
            values = found.values[reward.label].view(len(rows), self.members)[asked]
            gap = values.nanmean(1, keepdim=True) - own.nanmean(1, keepdim=True)
            for name, value in zip(WORDING, (values, gap), strict=True):
                if not bool(value.isnan().all()):
                    yield f"{name}.{reward.label}", value, mine

    def _lines(self, scored: ScoredSamples) -> list[dict[str, Any]]:
        """The scores and diagnostics of every sample, prompt by prompt."""
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
    """Return at most `count` evenly spaced indices below `total`, because prompt files are often sorted by task."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def _first_members(media: Tensor, samples: Sequence[int], prompts: Sequence[int], members: int) -> list[HostCopy]:
    """Return a copy of the first samples of the given prompts that are in this micro-batch, none if there are none."""
    rows = [samples.index(p * members) for p in prompts if p * members in samples]
    return [HostCopy(media[to_device(rows, media.device)])] if rows else []


def _joined(copies: Sequence[HostCopy]) -> list[Tensor]:
    """Return the samples of all copies, on the CPU."""
    return [sample for copy in copies for sample in copy.wait()]


def _joined_step_statistics(media: Sequence[Tensor], many_step: Sequence[Tensor]) -> dict[str, Tensor]:
    """Compute `monitors.step_statistics` of media that may differ in size; empty without media."""
    parts = [
        step_statistics(torch.stack(list(media[run])), torch.stack(list(many_step[run])))
        for run in runs([sample.shape for sample in media])
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
