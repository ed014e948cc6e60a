"""A reward in worker processes: supervised, restarted, and asked again for what got lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_remote.messages import (
    Blob,
    Malformed,
    Unfit,
    pack,
    prompts_as_json,
    read_examples,
    read_score_answer,
    score_request,
    stretches,
)
from dgpo_remote.reward import RemoteReward, RewardLost, RewardRaised
from dgpo_remote.worker.process import Lost, Recipe, WorkerProcess, resolve
from dgpo_schemas.service import PROTOCOL

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_schemas.run import RewardBlock, WorkerSection

__all__ = ["WorkerReward", "connect"]

log = logging.getLogger(__name__)

FIRST_WAIT = 0.05
LONGEST_WAIT = 30.0
"""Seconds before a worker is started again: doubled with each failure in a row, back to the first after a success."""


class Seat:
    """The place of one worker: whoever holds it may ask its process, which is started anew when it is gone."""

    def __init__(self, recipe: Recipe, process: WorkerProcess) -> None:
        self.recipe = recipe
        self.process: WorkerProcess | None = process
        self.failures = 0
        self.closed = threading.Event()
        self._busy = threading.Lock()
        self._exchange = threading.Lock()

    def ask(self, question: bytes) -> Blob:
        """Raises Lost, leaving the seat empty, and what the reward says."""
        with self._busy:
            return self._ask(question)

    def _ask(self, question: bytes) -> Blob:
        process = self.process
        if process is None:
            process = self._restart()
        try:
            answer = process.ask(question)
        except BaseException as error:
            if isinstance(error, Lost):
                self.failures += 1
            if isinstance(error, Lost) or process.ended:
                with self._exchange:
                    self.process = None
            raise
        self.failures = 0
        return answer

    def _restart(self) -> WorkerProcess:
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self.failures - 1, 20)) if self.failures else 0.0
        if self.closed.wait(wait):
            raise Lost("was closed")
        process = None
        try:
            process = WorkerProcess(self.recipe)
            with self._exchange:
                if self.closed.is_set():
                    raise Lost("was closed")
                self.process = process  # so that `close` finds it while it loads
            process.greet()
            return process
        except BaseException as error:
            self.failures += 1
            with self._exchange:
                self.process = None
            if process is not None:
                process.kill()
            if isinstance(error, UserError | Lost):
                raise Lost(str(error)) from error
            raise

    def close(self) -> None:
        """End the process: gently, unless it is at work, for then nobody is left who wants its answer."""
        self.closed.set()
        with self._exchange:
            process, self.process = self.process, None
        if process is None:
            return
        if not self._busy.acquire(blocking=False):
            process.kill()
            return
        try:
            process.stop()
        finally:
            self._busy.release()


def connect(block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
    """The reward of a block with a `worker`, ready to score (`dgpo_core.rewards.Connect`)."""
    assert block.worker is not None
    return WorkerReward(block, block.worker, device=device, where=where).face


class WorkerReward(RemoteReward):
    """Asks `count` processes, as many at a time. May be called from any thread."""

    def __init__(self, block: RewardBlock, section: WorkerSection, *, device: torch.device, where: str) -> None:
        """Start the processes and wait until their rewards are loaded. Raises UserError."""
        super().__init__(block.options, device=device)
        self._where = where
        self._retries = section.retries
        recipe = Recipe(
            where=where,
            python=resolve(section.python),
            environment=section.environment,
            use=block.use,
            options=block.options,
            device=device,
            start_timeout=section.start_timeout,
            timeout=section.timeout,
        )
        self._seats = [Seat(recipe, process) for process in _start(recipe, section.count, self._learn)]
        self._free: SimpleQueue[Seat] = SimpleQueue()
        for seat in self._seats:
            self._free.put(seat)

    def _learn(self, descriptions: Sequence[Any]) -> None:
        self._adopt(descriptions[0], concurrency=len(descriptions))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check them. Raises UserError, also if the reward fails at it."""
        for part in stretches(prompts, len(prompts)):  # a blob's header is bounded
            sent = prompts_as_json(prompts[part])
            self._ask_in_peace(pack({"protocol": PROTOCOL, "ask": "check", "prompts": sent}))

    def examples(self) -> Sequence[Example]:
        """The reward's own."""
        return read_examples(self._ask_in_peace(pack({"protocol": PROTOCOL, "ask": "examples"})))

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """The reward's scores. Raises RewardLost after all retries, RewardRaised with the reward's own message, and
        OutOfMemory: whoever asks halves the batch, as with a reward in its own process."""
        return self._score(media, prompts)

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """The same of a whole group."""
        return self._score(media, [prompt] * len(keys), keys)

    def _score(self, media: Tensor, prompts: Sequence[Prompt], keys: Sequence[SampleKey] | None = None) -> Scores:
        try:
            return read_score_answer(self._ask(score_request(media, prompts, keys=keys)))
        except UserError as error:
            raise RewardRaised(str(error)) from error
        except (Malformed, Unfit) as error:
            raise RewardLost(str(error)) from error

    def _ask_in_peace(self, question: bytes) -> Blob:
        """Ask where no score is at stake: before a run, when whatever goes wrong is for a person to mend."""
        try:
            return self._ask(question)
        except (RewardLost, RewardRaised, OutOfMemory) as error:
            raise UserError(f"{self._where}: {error}") from error

    def _ask(self, question: bytes) -> Blob:
        """Ask until there is an answer, but not more often than the section says."""
        with self._seat() as seat:
            for attempt in range(self._retries + 1):
                try:
                    return seat.ask(question)
                except Lost as error:
                    if seat.closed.is_set():
                        raise RewardLost("the worker was closed while it was at work") from error
                    last = error
                    if attempt < self._retries:
                        log.warning("%s: the worker %s; it is started again", self._where, str(error).splitlines()[0])
        raise RewardLost(f"the worker was lost {self._retries + 1} times with this batch; the last {last}")

    @contextmanager
    def _seat(self) -> Iterator[Seat]:
        seat = self._free.get()
        try:
            yield seat
        finally:
            self._free.put(seat)

    def close(self) -> None:
        """End the processes; a batch that is at work is lost."""
        for seat in self._seats:
            seat.close()


def _start(recipe: Recipe, count: int, learn: Callable[[Sequence[Any]], None]) -> list[WorkerProcess]:
    """Processes that have loaded their rewards, all at the same time."""
    made: list[WorkerProcess] = []
    try:
        for _ in range(count):
            made.append(WorkerProcess(recipe))
        learn([process.greet() for process in made])
    except BaseException:
        for process in made:
            process.kill()
        raise
    return made
