"""The scoring phase: rewards score media on their own threads while the next samples are drawn.

N is the number of samples in flat order, g of groups, G of members per group.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.distributed.comparing import NOT_FINITE, Layout, Members, WholeGroup
from dgpo_core.distributed.processes import Processes
from dgpo_core.flow.groups import aggregate, by_source
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.training.executors import RewardExecutor, wait_for
from dgpo_core.training.handover import Handover, hand_over, runs_between, scores_on_host
from dgpo_core.training.monitors import media_statistics
from dgpo_core.training.reward_calls import Reward, checked_group, checked_score
from dgpo_core.training.scored import NOT_ASKED, SampleScore, ScoredSamples, member_distances, thumbnails
from dgpo_core.training.scores import subscore_values
from dgpo_core.transfers import in_float64, to_device
from dgpo_core.types import Prompt, Rollout, SampleKey, ScoredGroups, Scores

if TYPE_CHECKING:
    from dgpo_schemas.sections.prompts import SourceBlock
    from dgpo_schemas.sections.rewards import ScoringSection

__all__ = ["Scorer"]

_NOTHING: tuple[float, Mapping[str, Any]] = (float("nan"), {})
"""Placeholder for a sample that another rank compared."""


class Scorer:
    """Submits micro-batches to the rewards and collects their scores in order.

    Each reward model runs on its own threads, as many as its `concurrency`. If a reward raises, or does not return one
    number per sample, the scores of its micro-batch are missing (never 0), with the reason in the log and in
    `failures`; so are the scores of samples whose media are not finite. Rewards that compare samples receive whole
    groups, which may span micro-batches: call `expect` first to define the groups.
    """

    def __init__(
        self, rewards: Sequence[Reward], process_state: ProcessState | None = None, in_flight: int | None = None
    ) -> None:
        """process_state: undoes changes of the rewards to process-wide state. in_flight: micro-batches (or groups, for
        a reward that compares) that may be queued per reward besides those being scored; unlimited if None."""
        self.rewards = rewards
        self.process_state = process_state or ProcessState()
        self.failures: list[str] = []
        self.waited = 0.0
        """Seconds that `submit` waited for room in the queues since the last `collect`."""
        models = {id(reward.model): reward.model for reward in rewards}  # a model may have several labels
        labels = Counter(id(reward.model) for reward in rewards)
        self._executors = {
            key: RewardExecutor(
                max(1, model.concurrency), None if in_flight is None else (in_flight + 1) * labels[key] - 1
            )
            for key, model in models.items()
        }
        self._pending: list[_Submitted] = []
        self._members: Members | None = None
        self._compared: dict[str, list[tuple[int, Future[tuple[Scores, float]]]]] = {}

    def expect(self, layout: Layout) -> None:
        """Define the groups before their first sample is submitted; only needed for rewards that compare samples."""
        self._compared = {reward.label: [] for reward in self.rewards if reward.compares}
        self._members = Members(layout) if self._compared else None

    def submit(
        self,
        media: Tensor,
        prompts: Sequence[Prompt],
        interrupt: Callable[[], None] = lambda: None,
        samples: Sequence[int] = (),
    ) -> None:
        """Queue media [B, 3, H, W] or [B, F, 3, H, W] with the prompt of each sample, and wait until at most
        `in_flight` micro-batches are queued for each reward.

        interrupt: called while waiting, may raise; samples: the samples' numbers in flat order, for rewards that
        compare.
        """
        prompts = tuple(prompts)
        broken = ~media.flatten(1).isfinite().all(1)
        # Computed on the media's device without synchronizing, and moved to the CPU in `collect`. Before the rewards
        # start: on a CPU they would share its cores with them.
        small, statistics = thumbnails(media), media_statistics(media)
        scores = {}
        handover: dict[tuple[tuple[int, ...], bool], Handover] = {}  # rewards that ask for the same rows share copies
        for reward in self.rewards:
            rows = tuple(i for i, prompt in enumerate(prompts) if reward.asks(prompt))
            if not reward.compares and rows:
                key = rows, scores_on_host(reward.model, media)
                if key not in handover:
                    part = (media, broken)
                    if len(rows) < len(prompts):
                        index = to_device(rows, media.device)
                        part = (media[index], broken[index])
                    handover[key] = hand_over(*part, on_host=key[1])
                call = partial(self._score, reward, handover[key], tuple(prompts[i] for i in rows))
                scores[reward.label] = self._start(reward, call)
        self._pending.append(_Submitted(scores, prompts, small, tuple(samples), statistics))
        for reward in self.rewards:
            if reward.label in scores and self.process_state.disturbs(reward.name):
                wait_for(scores[reward.label], interrupt)  # this reward must not run while samples are drawn
        if self._members is not None:
            self._compare(self._members.take(media, prompts, samples), interrupt)
        self._wait_for_room(interrupt)

    def complete(self, processes: Processes, interrupt: Callable[[], None] = lambda: None) -> None:
        """Exchange the members of groups that are split across ranks; all ranks must call this after the last
        `submit`."""
        if self._members is not None:
            self._compare(self._members.exchange(processes), interrupt)
            self._wait_for_room(interrupt)

    def _compare(self, groups: Iterable[WholeGroup], interrupt: Callable[[], None]) -> None:
        for group in groups:
            for reward in self.rewards:
                if reward.compares and reward.asks(group.prompt):
                    handover = hand_over(group.media, on_host=scores_on_host(reward.model, group.media))
                    call = partial(self._score_group, reward, handover, group.prompt, group.keys)
                    future = self._start(reward, call)
                    self._compared[reward.label].append((group.number, future))
                    if self.process_state.disturbs(reward.name):
                        wait_for(future, interrupt)

    def _start(self, reward: Reward, call: Callable[[], tuple[Scores, float]]) -> Future[tuple[Scores, float]]:
        """Queue a call of a reward; one that must not run beside the rollouts is called at once."""
        if not runs_between(reward.model):
            return self._executors[id(reward.model)].submit(call)
        future: Future[tuple[Scores, float]] = Future()
        try:
            future.set_result(call())
        except Exception as error:  # raised by `collect`, as those of the threads are
            future.set_exception(error)
        return future

    def _wait_for_room(self, interrupt: Callable[[], None]) -> None:
        started = time.perf_counter()
        for executor in self._executors.values():
            executor.wait_for_room(interrupt)
        self.waited += time.perf_counter() - started

    def collect(self, interrupt: Callable[[], None] = lambda: None) -> ScoredSamples:
        """Wait for all scores since the last call and return them.

        interrupt: called while waiting, may raise; then call `discard` to drop the rest.
        """
        for future in self._futures():
            wait_for(future, interrupt)
        prompts = [prompt for batch in self._pending for prompt in batch.prompts]
        results = {
            reward.label: (self._of_groups if reward.compares else self._of_samples)(reward, prompts)
            for reward in self.rewards
        }
        names = self._pending[0].statistics
        scored = ScoredSamples(
            values={label: result.values for label, result in results.items()},
            diagnostics={label: result.diagnostics for label, result in results.items()},
            thumbnails=[row for batch in self._pending for row in batch.thumbnails],
            statistics={n: in_float64(torch.cat([b.statistics[n] for b in self._pending])).cpu() for n in names},
            seconds={label: result.seconds for label, result in results.items()},
            others={reward.label: results[reward.label].others for reward in self.rewards if reward.compares},
        )
        self._reset()
        return scored

    def _futures(self) -> Iterator[Future[tuple[Scores, float]]]:
        """Yield the futures of all submitted calls."""
        for batch in self._pending:
            yield from batch.scores.values()
        for calls in self._compared.values():
            yield from (future for _, future in calls)

    def _of_samples(self, reward: Reward, prompts: Sequence[Prompt]) -> _Results:
        """Collect the scores of a reward that scores single samples, for the prompts that it applies to."""
        done = [batch.scores[reward.label].result() for batch in self._pending if reward.label in batch.scores]
        applies = [reward.asks(prompt) for prompt in prompts]
        values = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        if done:
            values[torch.tensor(applies)] = torch.cat([_values(scores) for scores, _ in done])
        entries = iter([entry for scores, _ in done for entry in scores.diagnostics])
        diagnostics = tuple(next(entries) if applied else NOT_ASKED for applied in applies)
        return _Results(values, diagnostics, sum(seconds for _, seconds in done))

    def _of_groups(self, reward: Reward, prompts: Sequence[Prompt]) -> _Results:
        """Collect the scores of a reward that compares: of this rank's samples, and of other ranks' by sample
        number."""
        assert self._members is not None, "call `expect` first"
        by_sample: dict[int, SampleScore] = {}
        seconds, members = 0.0, self._members.layout.members
        for number, future in self._compared[reward.label]:
            scores, spent = future.result()
            pairs = zip(_values(scores).tolist(), scores.diagnostics, strict=True)
            by_sample |= {number * members + member: pair for member, pair in enumerate(pairs)}
            seconds += spent
        local = [by_sample.pop(i, _NOTHING) for batch in self._pending for i in batch.samples]
        diagnostics = tuple(
            entry if reward.asks(prompt) else NOT_ASKED for (_, entry), prompt in zip(local, prompts, strict=True)
        )
        values = torch.tensor([value for value, _ in local], dtype=torch.float64)
        return _Results(values, diagnostics, seconds, by_sample)

    def _reset(self) -> None:
        self._pending.clear()
        self._members, self._compared = None, {}
        self.waited = 0.0

    def failure_of(self, label: str) -> str | None:
        """Return the last failure of a reward; None if it never failed."""
        return next((known for known in reversed(self.failures) if known.startswith(f"{label}: ")), None)

    def discard(self) -> None:
        """Drop everything that was submitted, without waiting for running calls."""
        for executor in self._executors.values():
            executor.discard()
        self._reset()

    def close(self) -> None:
        """Stop the threads and release the process state."""
        self.discard()
        for executor in self._executors.values():
            executor.close()
        self.process_state.close()

    def _score(self, reward: Reward, handover: Handover, prompts: tuple[Prompt, ...]) -> tuple[Scores, float]:
        started = time.perf_counter()
        with handover.taken() as (media, broken):
            scores = checked_score(reward, media, prompts, self.failures, self.process_state)
            broken = broken.cpu()
        if bool(broken.any()):
            diagnostics = tuple(
                {**entry, "reason": NOT_FINITE} if bad else entry
                for entry, bad in zip(scores.diagnostics, broken.tolist(), strict=True)
            )
            scores = Scores(scores.values, scores.missing | broken, diagnostics)
        return scores, time.perf_counter() - started

    def _score_group(
        self, reward: Reward, handover: Handover, prompt: Prompt, keys: tuple[SampleKey, ...]
    ) -> tuple[Scores, float]:
        started = time.perf_counter()
        with handover.taken() as (media,):
            scores = checked_group(reward, media, prompt, keys, self.failures, self.process_state)
        return scores, time.perf_counter() - started

    def groups(
        self,
        samples: ScoredSamples,
        rollouts: Sequence[Rollout],
        prompts: Sequence[Prompt],
        section: ScoringSection,
        epsilon: float,
        sources: Sequence[SourceBlock] = (),
    ) -> ScoredGroups:
        """Arrange flat samples as groups [g, G] and aggregate their rewards as configured in `section`, or by their
        source if it has its own aggregation.

        samples: the scores of all ranks; rollouts: this rank's rollouts; sources: the prompt sources.
        """
        own = {source.source: source.aggregation for source in sources}
        shape = (len(prompts), -1)
        each = {label: v.view(shape) for label, v in samples.values.items()}
        total = torch.zeros_like(next(iter(each.values())))
        summed, scored = total.clone(), torch.zeros(total.shape, dtype=torch.bool)
        for name, rows in by_source(prompts).items():
            asked = [reward for reward in self.rewards if reward.asks(prompts[rows[0]])]
            counted = [reward for reward in asked if reward.weight_in(name)]
            values = torch.stack([each[reward.label][rows] for reward in counted])
            weights = [reward.weight_in(name) for reward in counted]
            how, transforms = own.get(name) or section.aggregation, [reward.transform for reward in counted]
            total[rows], scored[rows] = aggregate(values, weights, how, epsilon, transforms)
            summed[rows], _ = aggregate(values, weights, "weighted-sum", epsilon)
        distances, diversity = member_distances(samples.thumbnails, len(prompts))
        return ScoredGroups(
            prompts=tuple(prompts),
            x0=tuple(x0 for r in rollouts for x0 in r.x0),
            own=[i for r in rollouts for i in r.samples],
            rewards=total,
            summed=summed.masked_fill(~scored, torch.nan),
            scored=scored,
            per_reward=each,
            asked={r.label: torch.tensor([r.asks(prompt) for prompt in prompts]) for r in self.rewards},
            counted={
                r.label: torch.tensor([r.weight_in(prompt.source) != 0 for prompt in prompts]) for r in self.rewards
            },
            subscores={label: subscore_values(samples.diagnostics[label], v) for label, v in samples.values.items()},
            diversity=diversity.cpu(),
            distances=in_float64(distances).cpu(),
            statistics={name: v.view(shape) for name, v in samples.statistics.items()},
            paths=tuple(r.path for r in rollouts if r.path is not None),
        )


def _values(scores: Scores) -> Tensor:
    """Return the values as float64 [B], nan where missing."""
    return scores.values.double().masked_fill(scores.missing, torch.nan)


@dataclass(frozen=True, slots=True)
class _Results:
    """A reward's scores of this rank's samples; see `ScoredSamples`."""

    values: Tensor
    diagnostics: Sequence[Mapping[str, Any]]
    seconds: float
    others: Mapping[int, SampleScore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Submitted:
    """A submitted micro-batch."""

    scores: Mapping[str, Future[tuple[Scores, float]]]
    prompts: tuple[Prompt, ...]
    thumbnails: Tensor
    samples: tuple[int, ...]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
