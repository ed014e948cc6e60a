"""A reward in worker processes: supervised, restarted, and asked again for what got lost."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dgpo_core.errors import UserError
from dgpo_remote.failures import Down, Nonsense, as_object
from dgpo_remote.reward import RemoteReward
from dgpo_remote.servers import End, Server, Servers
from dgpo_remote.worker.process import WorkerProcess, WorkerSpec, resolve
from dgpo_schemas.service import RewardDescription

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_schemas.sections.rewards import RewardBlock, WorkerSection

__all__ = ["WorkerReward", "connect"]

T = TypeVar("T")
FIRST_WAIT = 0.05
"""Seconds before a worker is started again after its first failure."""


def connect(block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
    """The reward of a block with a `worker`, ready to score (`dgpo_core.rewards.Connect`)."""
    assert block.worker is not None
    return WorkerReward(block, block.worker, device=device, where=where).face


class Worker:
    """The place of one process (`servers.End`), which is started anew when it is gone."""

    name = "the worker"

    def __init__(self, spec: WorkerSpec) -> None:
        """Start it. Raises UserError."""
        self.spec = spec
        self.busy = threading.Lock()
        self.process: WorkerProcess | None = WorkerProcess(spec)
        self._closed = False
        self._exchange = threading.Lock()

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """An answer of the process."""
        with self.busy:
            process = self.process
            if process is None or process.ended:
                process = self._restart()
            return process.ask(path, body or b"")

    def ask_json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """An answer that is JSON."""
        answer = as_object(self.ask(path, body))
        if answer is None:
            raise Nonsense("answered with something that is no JSON object")
        return answer

    def _restart(self) -> WorkerProcess:
        if self._closed:
            raise Down("was closed")
        process = None
        try:
            process = WorkerProcess(self.spec)
            with self._exchange:
                if self._closed:
                    raise Down("was closed")
                self.process = process  # so that `close` finds it while it loads
            process.greet()
            return process
        except BaseException as error:
            with self._exchange:
                self.process = None
            if process is not None:
                process.kill()
            if isinstance(error, UserError):
                raise Down(str(error)) from error
            raise

    def drop(self) -> None:
        """Have it started anew before it is asked again."""
        with self._exchange:
            process = self.process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process: gently, unless it is at work, for then nobody is left who wants its answer."""
        with self._exchange:
            self._closed = True
            process, self.process = self.process, None
        if process is None:
            return
        if not self.busy.acquire(blocking=False):
            process.kill()
            return
        try:
            process.stop()
        finally:
            self.busy.release()


class WorkerReward(RemoteReward):
    """Asks `count` processes, as many at a time."""

    gave_up = "the worker was lost {times} times with this batch; the last {error}"

    def __init__(self, block: RewardBlock, section: WorkerSection, *, device: torch.device, where: str) -> None:
        """Start the processes and wait until their rewards are loaded. Raises UserError."""
        spec = WorkerSpec(
            where=where,
            python=resolve(section.python),
            environment=section.environment,
            use=block.use,
            options=block.options,
            device=device,
            start_timeout=section.start_timeout,
            timeout=section.timeout,
        )
        workers: list[Worker] = []
        try:
            for _ in range(section.count):
                workers.append(Worker(spec))
            found = _greeted(workers)
        except BaseException:
            for worker in workers:
                if worker.process is not None:
                    worker.process.kill()
            raise
        servers = Servers(workers, 1, where, first_wait=FIRST_WAIT, restarted=True)
        super().__init__(block, servers, device=device, where=where, timeout=section.timeout, retries=section.retries)
        self._patience = math.inf  # those at work for others will be free
        self._adopt(found[0], concurrency=section.count)

    def _from(self, server: Server, send: Callable[[End], T]) -> T:
        """As any server's; a process that answers nonsense is given up, as one that ended."""
        try:
            return super()._from(server, send)
        except Nonsense:
            assert isinstance(server.end, Worker)
            server.end.drop()
            raise


def _greeted(workers: Sequence[Worker]) -> list[RewardDescription]:
    """What they are like, once all have loaded their rewards."""
    return [worker.process.greet() for worker in workers if worker.process is not None]
