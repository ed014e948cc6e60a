"""The verb *score*: media to rewards, on threads of their own, while the next samples are drawn.

Legend: N samples in flat order, g groups, G members of a group, D pixels of a thumbnail.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.distributed.comparing import NOT_FINITE, Layout, Members, WholeGroup, compared
from dgpo_core.distributed.processes import Processes, in_order
from dgpo_core.errors import DgpoError
from dgpo_core.flow.groups import LARGEST, aggregate, by_source, mean_pairwise_distance
from dgpo_core.flow.sizes import runs
from dgpo_core.plugins.isolation import ctrl_c, no_exit
from dgpo_core.plugins.surroundings import Guard
from dgpo_core.training.guards import media_statistics
from dgpo_core.training.lanes import Lane, wait_for
from dgpo_core.training.memory import OutOfMemory, free, in_halves, is_out_of_memory
from dgpo_core.training.scores import check_scores, part_values, sound_parts
from dgpo_core.types import Prompt, Rollout, SampleKey, ScoredGroups, Scores
from dgpo_schemas.text import clean, error_text

if TYPE_CHECKING:
    from dgpo_schemas.sections.rewards import ScoringSection

__all__ = [
    "Reward",
    "ScoredSamples",
    "Scorer",
    "checked_group",
    "checked_score",
    "diversity",
    "merged",
    "missing_beyond",
    "not_finite",
    "reasons_of",
]

log = logging.getLogger(__name__)
THUMBNAIL = 32
"""Side in pixels to which media are averaged before the diversity of a group is measured."""
ROUNDING = 1e-4
"""Share of a bound's size by which a value may pass its declared range: rounding, not a mistake."""
REASON = 300
"""Characters of a reward's reason in a message."""
_TELLING = threading.Lock()
NOT_ASKED: Mapping[str, Any] = {"asked": False}
"""Diagnostics of a sample whose source does not ask for the reward: it has no value, and none is missing."""
_NOTHING: tuple[float, Mapping[str, Any]] = (float("nan"), {})
"""Of a sample that another process has compared."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward model under the label of the run file, with its weight. A guard is shown and never trained on."""

    label: str
    weight: float
    model: AnyReward
    guard: bool = False
    sources: frozenset[str] | None = None
    """Names of the sources whose samples it is asked to score; None: of all."""
    halved: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    """Set once it has been told that its batches are scored in halves."""

    @property
    def name(self) -> str:
        """For messages about what it does besides scoring."""
        return f"reward {self.label}"

    def asks(self, prompt: Prompt) -> bool:
        """Whether it is asked to score samples of this prompt; those of no source it always is."""
        return self.sources is None or not prompt.source or prompt.source in self.sources

    @property
    def compares(self) -> bool:
        """Whether it is shown whole groups."""
        return isinstance(self.model, GroupReward)


Said = tuple[float, Mapping[str, Any]]
"""A sample's value, nan if it is missing, and diagnostics."""


@dataclass(frozen=True, slots=True)
class ScoredSamples:
    """Scores of N samples in flat order.

    values: label to float64 [N] (nan where missing); diagnostics: label to one mapping a sample; thumbnails: N of [D],
    where D may differ from group to group; statistics: name to float64 [N], of the media themselves (`guards`);
    seconds: label to time spent in the reward; others: label to number to what a reward that compares says of samples
    of other processes, which it has compared here (theirs have no value there).
    """

    values: Mapping[str, Tensor]
    diagnostics: Mapping[str, Sequence[Mapping[str, Any]]]
    thumbnails: Sequence[Tensor]
    statistics: Mapping[str, Tensor]
    seconds: Mapping[str, float]
    others: Mapping[str, Mapping[int, Said]] = field(default_factory=dict)


class Scorer:
    """Submits micro-batches to the rewards and collects their scores in order.

    Each reward model works on its own threads, as many as its `concurrency`. A reward that raises, or returns something
    that is not one number per sample, leaves its micro-batch missing, with the reason in the log and in `failures`; it
    never becomes 0. Nor does a sample whose media are not finite. Rewards that compare are shown whole groups, which
    micro-batches may cut anywhere: `expect` says beforehand what makes a group.
    """

    def __init__(self, rewards: Sequence[Reward], guard: Guard | None = None, in_flight: int | None = None) -> None:
        """guard: keeps what the rewards share with the run as it is. in_flight: micro-batches (or groups, of a reward
        that compares) that may wait for each reward beside those it is at work on; any number if None."""
        self.rewards = rewards
        self.guard = guard or Guard()
        self.failures: list[str] = []
        self.waited = 0.0
        """Seconds that `submit` has waited for room since the last `collect`."""
        models = {id(reward.model): reward.model for reward in rewards}  # one model may bear several labels
        labels = Counter(id(reward.model) for reward in rewards)
        self._lanes = {
            key: Lane(max(1, model.concurrency), None if in_flight is None else (in_flight + 1) * labels[key] - 1)
            for key, model in models.items()
        }
        self._pending: list[_Submitted] = []
        self._members: Members | None = None
        self._compared: dict[str, list[tuple[int, Future[tuple[Scores, float]]]]] = {}

    def expect(self, layout: Layout) -> None:
        """Say which samples make a group, before the first of them is submitted; only rewards that compare need it."""
        self._compared = {reward.label: [] for reward in self.rewards if reward.compares}
        self._members = Members(layout) if self._compared else None

    def submit(
        self,
        media: Tensor,
        prompts: Sequence[Prompt],
        interrupt: Callable[[], None] = lambda: None,
        samples: Sequence[int] = (),
    ) -> None:
        """Queue media [B, 3, H, W] or [B, F, 3, H, W] with the prompt of each sample, and wait until no more than
        `in_flight` micro-batches wait for any reward. `interrupt` is called while it waits, and may raise. samples:
        their numbers in flat order, for rewards that compare."""
        prompts = tuple(prompts)
        broken = ~media.flatten(1).isfinite().all(1)
        scores = {}
        for reward in self.rewards:
            rows = [i for i, prompt in enumerate(prompts) if reward.asks(prompt)]
            if not reward.compares and rows:
                part = (media, prompts, broken)
                if len(rows) < len(prompts):
                    part = (media[rows], tuple(prompts[i] for i in rows), broken[rows])
                scores[reward.label] = self._lanes[id(reward.model)].submit(partial(self._score, reward, *part))
        # On the media's own device and without waiting for it; moved to the CPU when collected.
        self._pending.append(_Submitted(scores, prompts, _thumbnails(media), tuple(samples), media_statistics(media)))
        for reward in self.rewards:
            if reward.label in scores and self.guard.disturbs(reward.name):
                wait_for(scores[reward.label], interrupt)  # nothing is drawn while it is at work
        if self._members is not None:
            self._compare(self._members.take(media, prompts, samples), interrupt)
        self._wait_for_room(interrupt)

    def complete(self, processes: Processes, interrupt: Callable[[], None] = lambda: None) -> None:
        """Bring the members of groups that processes share together. To be called by all processes when everything is
        submitted."""
        if self._members is not None:
            self._compare(self._members.exchange(processes), interrupt)
            self._wait_for_room(interrupt)

    def _compare(self, groups: Iterable[WholeGroup], interrupt: Callable[[], None]) -> None:
        for group in groups:
            for reward in self.rewards:
                if reward.compares and reward.asks(group.prompt):
                    call = partial(self._score_group, reward, group)
                    future = self._lanes[id(reward.model)].submit(call)
                    self._compared[reward.label].append((group.number, future))
                    if self.guard.disturbs(reward.name):
                        wait_for(future, interrupt)

    def _wait_for_room(self, interrupt: Callable[[], None]) -> None:
        started = time.perf_counter()
        for lane in self._lanes.values():
            lane.wait_for_room(interrupt)
        self.waited += time.perf_counter() - started

    def collect(self, interrupt: Callable[[], None] = lambda: None) -> ScoredSamples:
        """Wait for everything that was submitted since the last call. `interrupt` is called while it waits, and may
        raise; `discard` then drops what is left."""
        values, diagnostics, seconds, others = {}, {}, {}, {}
        for batch in self._pending:
            for future in batch.scores.values():
                wait_for(future, interrupt)
        for calls in self._compared.values():
            for _, future in calls:
                wait_for(future, interrupt)
        own = [sample for batch in self._pending for sample in batch.samples]
        prompts = [prompt for batch in self._pending for prompt in batch.prompts]
        for reward in self.rewards:
            if reward.compares:
                said, seconds[reward.label] = self._said(reward.label)
                values[reward.label] = torch.tensor([said.get(i, _NOTHING)[0] for i in own], dtype=torch.float64)
                diagnostics[reward.label] = tuple(
                    said.pop(i, _NOTHING)[1] if reward.asks(prompt) else NOT_ASKED
                    for i, prompt in zip(own, prompts, strict=True)
                )
                others[reward.label] = said
                continue
            done = [batch.scores[reward.label].result() for batch in self._pending if reward.label in batch.scores]
            scored = [s.values.double().masked_fill(s.missing, torch.nan) for s, _ in done]
            asked = [reward.asks(prompt) for prompt in prompts]
            told = [d for s, _ in done for d in s.diagnostics]
            seconds[reward.label] = sum(spent for _, spent in done)
            if all(asked):
                values[reward.label], diagnostics[reward.label] = torch.cat(scored), tuple(told)
                continue
            values[reward.label] = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
            if scored:
                values[reward.label][torch.tensor(asked)] = torch.cat(scored)
            rest = iter(told)
            diagnostics[reward.label] = tuple(next(rest) if one else NOT_ASKED for one in asked)
        thumbnails = [row for batch in self._pending for row in batch.thumbnails]
        names = self._pending[0].statistics
        statistics = {n: torch.cat([b.statistics[n] for b in self._pending]).double().cpu() for n in names}
        self._forget()
        return ScoredSamples(values, diagnostics, thumbnails, statistics, seconds, others)

    def _said(self, label: str) -> tuple[dict[int, Said], float]:
        """What a reward that compares says of samples by their numbers, and the time that it took."""
        assert self._members is not None, "rewards that compare are told what makes a group"
        said, seconds, members = {}, 0.0, self._members.layout.members
        for number, future in self._compared[label]:
            scores, spent = future.result()
            values = scores.values.double().masked_fill(scores.missing, torch.nan).tolist()
            for place, one in enumerate(zip(values, scores.diagnostics, strict=True)):
                said[number * members + place] = one
            seconds += spent
        return said, seconds

    def _forget(self) -> None:
        self._pending.clear()
        self._members, self._compared = None, {}
        self.waited = 0.0

    def failure_of(self, label: str) -> str | None:
        """The last failure of a reward; None if it never failed."""
        return next((known for known in reversed(self.failures) if known.startswith(f"{label}: ")), None)

    def discard(self) -> None:
        """Drop what was submitted (the iteration was abandoned), without waiting for the reward at work."""
        for lane in self._lanes.values():
            lane.discard()
        self._forget()

    def close(self) -> None:
        """Stop the threads."""
        self.discard()
        for lane in self._lanes.values():
            lane.close()
        self.guard.close()

    def _score(
        self, reward: Reward, media: Tensor, prompts: tuple[Prompt, ...], broken: Tensor
    ) -> tuple[Scores, float]:
        started = time.perf_counter()
        scores = checked_score(reward, media, prompts, self.failures, self.guard)
        broken = broken.cpu()
        if bool(broken.any()):
            diagnostics = tuple(
                {**said, "reason": NOT_FINITE} if bad else said
                for said, bad in zip(scores.diagnostics, broken.tolist(), strict=True)
            )
            scores = Scores(scores.values, scores.missing | broken, diagnostics)
        return scores, time.perf_counter() - started

    def _score_group(self, reward: Reward, group: WholeGroup) -> tuple[Scores, float]:
        started = time.perf_counter()
        scores = checked_group(reward, group.media, group.prompt, group.keys, self.failures, self.guard)
        return scores, time.perf_counter() - started

    def groups(
        self,
        samples: ScoredSamples,
        rollouts: Sequence[Rollout],
        prompts: Sequence[Prompt],
        section: ScoringSection,
        epsilon: float,
    ) -> ScoredGroups:
        """Flat samples as groups [g, G], their rewards made one number as `section` says; `rollouts` are this
        process's, `samples` all."""
        shape = (len(prompts), -1)
        each = {label: v.view(shape) for label, v in samples.values.items()}
        total = torch.zeros_like(next(iter(each.values())))
        summed, scored = total.clone(), torch.zeros(total.shape, dtype=torch.bool)
        for rows in by_source(prompts).values():
            counted = [reward for reward in self.rewards if reward.weight and reward.asks(prompts[rows[0]])]
            values = torch.stack([each[reward.label][rows] for reward in counted])
            weights = [reward.weight for reward in counted]
            total[rows], scored[rows] = aggregate(values, weights, section.aggregation, epsilon)
            summed[rows], _ = aggregate(values, weights, "weighted-sum", epsilon)
        return ScoredGroups(
            prompts=tuple(prompts),
            x0=tuple(x0 for r in rollouts for x0 in r.x0),
            own=[i for r in rollouts for i in r.samples],
            rewards=total,
            summed=summed.masked_fill(~scored, torch.nan),
            scored=scored,
            per_reward=each,
            asked={r.label: torch.tensor([r.asks(prompt) for prompt in prompts]) for r in self.rewards},
            parts={label: part_values(samples.diagnostics[label], v) for label, v in samples.values.items()},
            diversity=diversity(samples.thumbnails, len(prompts)).cpu(),
            statistics={name: v.view(shape) for name, v in samples.statistics.items()},
            paths=tuple(r.path for r in rollouts if r.path is not None),
        )


def merged(own: ScoredSamples | None, processes: Processes, samples: Sequence[Sequence[int]]) -> ScoredSamples:
    """What all processes have scored, in flat order; own: this one's, None if it had nothing to score.

    samples: the numbers of each process's samples, as `own` and its like have them.
    """
    if processes.count == 1:
        assert own is not None
        return own
    said = processes.everyone(
        None
        if own is None
        else {
            "values": {label: v.tolist() for label, v in own.values.items()},
            "diagnostics": own.diagnostics,
            "statistics": {name: v.tolist() for name, v in own.statistics.items()},
            "seconds": own.seconds,
            "others": {label: [[i, *one] for i, one in said.items()] for label, said in own.others.items()},
        }
    )
    thumbnails = processes.gather_each(() if own is None else own.thumbnails)
    parts: list[dict[str, Any]] = [part for part in said if part is not None]

    def joined(kind: str) -> dict[str, list[Any]]:
        return {
            name: in_order([value for part in parts for value in part[kind][name]], samples) for name in parts[0][kind]
        }

    values, diagnostics = joined("values"), joined("diagnostics")
    for part in parts:
        for label, others in part["others"].items():
            for i, *one in others:
                values[label][i], diagnostics[label][i] = one
    return ScoredSamples(
        values={label: torch.tensor(v, dtype=torch.float64) for label, v in values.items()},
        diagnostics=diagnostics,
        thumbnails=in_order(thumbnails, samples),
        statistics={name: torch.tensor(v, dtype=torch.float64) for name, v in joined("statistics").items()},
        seconds={label: sum(part["seconds"][label] for part in parts) for label in parts[0]["seconds"]},
    )


def checked_score(
    reward: Reward,
    media: Tensor,
    prompts: Sequence[Prompt],
    failures: list[str] | None = None,
    guard: Guard | None = None,
) -> Scores:
    """Ask a reward and check what it says; never raises. What it leaves changed in the process is put back.

    Returns values float32 [B] and missing bool [B] on the CPU, one mapping of diagnostics per sample, which JSON can
    hold. All samples are missing where the reward raised (whatever it was; a Ctrl-C alone is passed on) or answered in
    another shape; those whose value is no number or lies outside the declared range are missing too. Where memory runs
    out the batch is scored in halves, and a sample that does not even fit alone is missing. The reason stands in the
    diagnostics; a reason that is new is logged and appended to `failures`.
    """
    failures = [] if failures is None else failures
    model = reward.model
    assert isinstance(model, RewardModel)

    def score(part: Tensor, shown: Sequence[Prompt]) -> Scores:
        try:
            return model.score(part, shown)
        except Exception as error:
            if len(shown) != 1 or not is_out_of_memory(error):
                raise
            alone = OutOfMemory.alone(error)  # costs this sample alone
            _remember(failures, reward.label, str(alone), 1, error)
        free()
        return _missing(1, str(alone))

    def ask() -> Scores:
        return in_halves(score, media, prompts, partial(_tell_of_halves, reward))

    return _asked(reward, ask, len(prompts), failures, guard)


def checked_group(
    reward: Reward,
    media: Tensor,
    prompt: Prompt,
    keys: Sequence[SampleKey],
    failures: list[str] | None = None,
    guard: Guard | None = None,
) -> Scores:
    """Ask a reward that compares about a whole group, with the promises of `checked_score`.

    It is shown the members whose media are finite; the others are missing, and all are if fewer than two are left.
    There is no halving: a group that does not fit into memory is missing.
    """
    model = reward.model
    assert isinstance(model, GroupReward)

    def call(shown: Tensor, named: Sequence[SampleKey]) -> Scores:
        try:
            return check_scores(model.score_group(shown, prompt, named), len(named))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            why = OutOfMemory(f"out of memory, with a group of {len(named)}: {_reason(error)}")
        free()  # outside of the `except`, which keeps the group's tensors alive
        raise why

    def ask(shown: Tensor, named: Sequence[SampleKey]) -> Scores:
        return _asked(reward, partial(call, shown, named), len(named), [] if failures is None else failures, guard)

    return compared(media, keys, ask)


def _asked(reward: Reward, ask: Callable[[], Scores], count: int, failures: list[str], guard: Guard | None) -> Scores:
    """What `ask` gives, checked, or `count` samples that are missing because it failed."""
    with ctrl_c() as pressed:
        try:
            with _guarded(reward, guard), no_exit(), torch.no_grad():
                return _with_sound_parts(reward, _in_range(reward, ask(), failures), failures)
        except BaseException as error:  # some libraries exit where others raise
            if pressed():
                raise
            reason = _reason(error)
            _remember(failures, reward.label, reason, count, error)
    return _missing(count, reason)


def _missing(count: int, reason: str) -> Scores:
    return Scores(
        torch.zeros(count), torch.ones(count, dtype=torch.bool), tuple({"reason": reason} for _ in range(count))
    )


def _reason(error: BaseException) -> str:
    """What a reward failed with, in the same words wherever it runs: errors of our own are messages already."""
    text = error_text(error)
    return text.removeprefix(f"{type(error).__name__}: ") if isinstance(error, DgpoError) else text


def _tell_of_halves(reward: Reward, error: BaseException) -> None:
    with _TELLING:
        if reward.halved.is_set():
            return
        reward.halved.set()
    log.warning(
        "reward %s: out of memory; such batches are scored in halves, whose last bits may differ from those of the "
        "whole: a smaller rollout.micro_batch would save the attempts (%s)",
        reward.label, _reason(error),
    )  # fmt: skip


def _guarded(reward: Reward, guard: Guard | None) -> AbstractContextManager[None]:
    return nullcontext() if guard is None or reward.model.elsewhere else guard.around(reward.name)


def missing_beyond(
    limit: float, rewards: Sequence[Reward], scored: Tensor, samples: ScoredSamples
) -> tuple[float, str] | None:
    """(share, reasons) if a larger share of samples than `limit` is not scored, or none is; else None.

    scored bool of any shape: whether a sample has every reward that counts.
    """
    missing = int((~scored).sum()) / scored.numel()
    if missing <= limit and missing < 1:
        return None
    why = reasons_of([reward for reward in rewards if reward.weight], samples)  # the others may fail
    return missing, why or "the rewards gave no reason"


def reasons_of(rewards: Iterable[Reward], samples: ScoredSamples) -> str:
    """In words, the first few reasons that rewards give for samples that are missing; empty if they give none."""
    reasons = dict.fromkeys(
        f"{reward.label}: {clean(str(diagnostics['reason']), REASON)}"
        for reward in rewards
        for diagnostics in samples.diagnostics[reward.label]
        if diagnostics.get("reason")
    )
    return "; ".join(list(reasons)[:3])


def not_finite(rewards: Iterable[Reward], samples: ScoredSamples) -> bool:
    """Whether scores are missing, and none for another reason than that the media are not finite."""
    reasons = {
        diagnostics.get("reason")
        for reward in rewards
        if reward.weight
        for value, diagnostics in zip(
            samples.values[reward.label].tolist(), samples.diagnostics[reward.label], strict=True
        )
        if value != value and diagnostics != NOT_ASKED
    }
    return reasons == {NOT_FINITE}


def _in_range(reward: Reward, scores: Scores, failures: list[str]) -> Scores:
    """Values that are no number, or lie outside the declared range, as missing."""
    low, high = max(reward.model.range[0], -LARGEST), min(reward.model.range[1], LARGEST)
    values = scores.values.double()
    below = values < low - ROUNDING * max(1.0, abs(low))
    above = values > high + ROUNDING * max(1.0, abs(high))
    wrong = (~values.isfinite() | below | above) & ~scores.missing
    if not bool(wrong.any()):
        return scores
    diagnostics = list(scores.diagnostics)
    for i in wrong.nonzero().flatten().tolist():
        reason = f"the value {float(values[i])} is not in the declared range [{low}, {high}]"
        diagnostics[i] = {**diagnostics[i], "reason": reason}
    outside = bool(((below | above) & wrong).any())
    kind = f"values outside its declared range [{low}, {high}]" if outside else "values that are no numbers"
    _remember(failures, reward.label, f"it returned {kind}", int(wrong.sum()), None)
    return Scores(scores.values, scores.missing | wrong, tuple(diagnostics))


def _with_sound_parts(reward: Reward, scores: Scores, failures: list[str]) -> Scores:
    """A score whose parts are none keeps its value."""
    scores, wrong = sound_parts(scores)
    if wrong is not None:
        _remember(failures, reward.label, wrong, 0, None)
    return scores


def _remember(failures: list[str], label: str, what: str, count: int, error: BaseException | None) -> None:
    reason = f"{label}: {what}"
    with _TELLING:  # several threads may fail at the same time
        if reason in failures:
            return
        failures.append(reason)
    if count:
        log.warning("reward failed, %d samples are missing: %s", count, reason, exc_info=_shown(error))
    else:
        log.warning("reward %s; they are left out", reason)


def _shown(error: BaseException | None) -> BaseException | None:
    """The exception, if its traceback can be written: one whose text cannot be had cannot."""
    try:
        str(error)
    except BaseException:
        return None
    return error


def diversity(thumbnails: Sequence[Tensor], groups: int) -> Tensor:
    """[groups] the mean pairwise distance of each group's members, given group by group.

    The members of a group have one size, and only they are compared: other groups' sizes do not matter.
    """
    members = len(thumbnails) // groups
    found = []
    for run in runs([len(one) for one in thumbnails[::members]]):
        some = torch.stack(list(thumbnails[run.start * members : run.stop * members]))
        found.append(mean_pairwise_distance(some.view(run.stop - run.start, members, -1)))
    return torch.cat(found)


def _thumbnails(media: Tensor) -> Tensor:
    """Media [B, (F,) 3, H, W] averaged to small pictures, [B, D]."""
    frames = (media.flatten(0, 1) if media.dim() == 5 else media).nan_to_num(0.0, 0.0, 0.0)
    if max(frames.shape[-2:]) > THUMBNAIL:
        frames = F.adaptive_avg_pool2d(frames, THUMBNAIL)
    return frames.reshape(len(media), -1)


@dataclass(frozen=True, slots=True)
class _Submitted:
    """One micro-batch under way."""

    scores: Mapping[str, Future[tuple[Scores, float]]]
    prompts: tuple[Prompt, ...]
    thumbnails: Tensor
    samples: tuple[int, ...]
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
