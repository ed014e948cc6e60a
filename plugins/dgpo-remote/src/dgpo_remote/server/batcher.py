"""The reward's threads: a queue of requests, of which small ones are scored in one batch."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts import AnyReward
from dgpo_core.distributed.comparing import NOT_FINITE, compared
from dgpo_core.plugins.process_state import ProcessState
from dgpo_core.training.handover import runs_between
from dgpo_core.training.memory import in_halves
from dgpo_core.training.scores import check_scores
from dgpo_core.types import Prompt, SampleKey, Scores
from dgpo_remote.answering import message_of, refusal_of, scored
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.budget import current_share
from dgpo_remote.server.counters import Counters
from dgpo_schemas.serve import BatchingSection
from dgpo_schemas.text import error_text

__all__ = ["Batcher"]

log = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that `close` waits for a batch in progress, and for the reward's own `close`."""


@dataclass(eq=False)
class Job:
    """Samples of one shape, or a function call with the reward."""

    future: Future[Any]
    media: Tensor | None = None
    prompts: Sequence[Prompt] = ()
    alone: bool = True
    keys: Sequence[SampleKey] | None = None
    call: Callable[[AnyReward], Any] | None = None
    since: float = field(default_factory=time.monotonic)

    def joins(self, other: Job) -> bool:
        """Whether both jobs can be scored in one batch."""
        if self.media is None or other.media is None or self.alone or other.alone:
            return False
        return (self.media.shape[1:], self.media.dtype) == (other.media.shape[1:], other.media.dtype)


class Batcher:
    """Loads a reward in a thread and scores in that thread, and in more threads up to the reward's `concurrency`."""

    def __init__(self, load: Callable[[], AnyReward], section: BatchingSection, counters: Counters) -> None:
        self.reward: AnyReward | None = None
        self.failure: BaseException | None = None
        self._load = load
        self._process_state = ProcessState()  # as in a run, so that the scores are bit-identical
        self._section = section
        self._counters = counters
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._at_work: dict[int, float] = {}
        self._threads = [threading.Thread(target=self._first, name="reward", daemon=True)]

    def start(self) -> None:
        """Start loading the reward, which sets `reward` or `failure`."""
        self._threads[0].start()

    def waiting(self) -> int:
        """Return the number of queued jobs."""
        return len(self._jobs)

    def stuck(self, seconds: float) -> bool:
        """Whether the reward has worked on one batch for longer than `seconds`."""
        now = time.monotonic()
        return any(now - since > seconds for since in list(self._at_work.values()))

    def score(
        self, media: Tensor, prompts: Sequence[Prompt], *, alone: bool, keys: Sequence[SampleKey] | None = None
    ) -> Future[Scores]:
        """Queue media [B, (F,) 3, H, W] on the CPU for scoring. The future raises Refusal.

        alone: in a separate batch; keys: sample keys of a whole group, for a group reward.
        """
        alone = alone or keys is not None or len(prompts) >= self._section.max_batch
        return self._submit(Job(Future(), media, prompts, alone, keys))

    def call(self, function: Callable[[AnyReward], Any]) -> Future[Any]:
        """Queue a function that is called with the reward."""
        return self._submit(Job(Future(), call=function))

    def _submit(self, job: Job) -> Future[Any]:
        # A job holds its media until it is done, even if its client has disconnected.
        share = current_share()
        if share is not None:
            share.hold()

        def done(future: Future[Any]) -> None:
            if future.cancelled():
                self._forget(job)
            job.call = None  # free its prompts now, without garbage collection
            if share is not None:
                share.release()

        job.future.add_done_callback(done)
        with self._change:
            self._jobs.append(job)
            self._change.notify_all()
        return job.future

    def _forget(self, job: Job) -> None:
        """Remove a cancelled job and free its media, even while the reward hangs."""
        with self._change:
            if job in self._jobs:
                self._jobs.remove(job)
            job.media, job.prompts = None, ()

    def close(self) -> None:
        """Stop the threads, without waiting longer than `PATIENCE` for a batch in progress, and close the reward."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))
        self._process_state.close()
        if self.reward is not None:
            closing = threading.Thread(target=self._close_reward, args=(self.reward,), name="reward", daemon=True)
            closing.start()
            closing.join(PATIENCE)

    @staticmethod
    def _close_reward(reward: AnyReward) -> None:
        try:
            reward.close()
        except BaseException as error:
            log.warning("the reward could not be closed: %s", error_text(error))

    # -- on the threads ---------------------------------------------------------------------------------------------

    def _first(self) -> None:
        try:
            with self._process_state.around("the reward, when it was made,"):
                reward = self._load()
        except BaseException as error:
            self.failure = error
            return
        # Two threads that use MPS at once would end the process (`dgpo_core.training.handover`).
        count = 0 if runs_between(reward) else reward.concurrency - 1
        more = [threading.Thread(target=self._work, name="reward", daemon=True) for _ in range(count)]
        self._threads += more
        self.reward = reward
        for thread in more:
            thread.start()
        self._work()

    def _work(self) -> None:
        while jobs := self._take():
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            self._at_work[threading.get_ident()] = time.monotonic()
            try:
                self._do(jobs)
            finally:
                del self._at_work[threading.get_ident()]
            del jobs  # media must not outlive their scores

    def _take(self) -> list[Job]:
        """Wait for the next job and those that join its batch. Returns an empty list when the batcher closes."""
        with self._change:
            while not self._jobs:
                if self._closing:
                    return []
                self._change.wait()
            batch = [self._jobs.popleft()]
            until = batch[0].since + self._section.max_wait_ms / 1000
            while not batch[0].alone:
                self._join(batch)
                remaining = until - time.monotonic()
                if sum(len(job.prompts) for job in batch) >= self._section.max_batch or remaining <= 0 or self._closing:
                    break
                self._change.wait(remaining)
            return batch

    def _join(self, batch: list[Job]) -> None:
        count = sum(len(job.prompts) for job in batch)
        for job in list(self._jobs):
            if job.joins(batch[0]) and count + len(job.prompts) <= self._section.max_batch:
                self._jobs.remove(job)
                batch.append(job)
                count += len(job.prompts)

    def _do(self, jobs: list[Job]) -> None:
        """Run the jobs and set their futures. If a joint batch fails, each job is run by itself."""
        try:
            done = self._results(jobs)
        except BaseException as error:  # the thread must survive any exception
            if len(jobs) > 1:
                for job in jobs:
                    self._do([job])
                return
            job = jobs[0]
            if job.media is not None:
                self._counters.failures.inc()
                log.warning("the reward failed on %d samples: %s", len(job.prompts), error_text(error))
            job.future.set_exception(_refused(error, len(job.prompts)))
            return
        for job, result in zip(jobs, done, strict=True):
            job.future.set_result(result)

    def _results(self, jobs: list[Job]) -> list[Any]:
        assert self.reward is not None
        if jobs[0].call is not None:
            with self._process_state.around("the reward"):
                return [jobs[0].call(self.reward)]
        media = [job.media for job in jobs if job.media is not None]
        prompts = [prompt for job in jobs for prompt in job.prompts]
        started = time.perf_counter()
        together = media[0] if len(media) == 1 else torch.cat(media)
        if jobs[0].keys is None:
            scores = _without_broken(in_halves(self._score, together, prompts), together)
        else:
            scores = compared(together, jobs[0].keys, partial(self._score_group, prompts[0]))
        self._counters.batch_seconds.observe(time.perf_counter() - started)
        self._counters.batch.observe(len(prompts))
        self._counters.samples.inc(len(prompts))
        self._counters.missing.inc(int((scores.missing | ~scores.values.isfinite()).sum()))
        return _split(scores, [len(job.prompts) for job in jobs])

    def _score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        assert self.reward is not None
        return scored(self.reward, media, prompts, None, self._process_state)

    def _score_group(self, prompt: Prompt, media: Tensor, keys: Sequence[SampleKey]) -> Scores:
        assert self.reward is not None
        return check_scores(scored(self.reward, media, [prompt] * len(keys), keys, self._process_state), len(keys))


def _refused(error: BaseException, samples: int) -> Refusal:
    """Return the error response for a failed job."""
    refusal = refusal_of(error)
    if refusal.kind == "memory":
        what = f" with a request of {samples} samples" if samples else ""
        return Refusal(507, "memory", f"the service ran out of memory{what}: {message_of(error)}")
    return refusal


def _without_broken(scores: Scores, media: Tensor) -> Scores:
    """Mark samples with non-finite media as missing, as runs do, regardless of the reward's values."""
    broken = torch.tensor([not bool(one.isfinite().all()) for one in media], dtype=torch.bool)  # avoids copies
    if not bool(broken.any()):
        return scores
    diagnostics = tuple(
        {**one, "reason": NOT_FINITE} if bad else one
        for one, bad in zip(scores.diagnostics, broken.tolist(), strict=True)
    )
    values = scores.values.to(torch.promote_types(scores.values.dtype, torch.float16)).masked_fill(broken, torch.nan)
    return Scores(values, scores.missing | broken, diagnostics)


def _split(scores: Scores, counts: Sequence[int]) -> list[Scores]:
    """Split the scores of a batch into the jobs' scores."""
    parts, start = [], 0
    for count in counts:
        rows = slice(start, start + count)
        parts.append(Scores(scores.values[rows], scores.missing[rows], scores.diagnostics[rows]))
        start += count
    return parts
