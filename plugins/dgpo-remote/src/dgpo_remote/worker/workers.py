"""A reward in worker processes, which are supervised and restarted, with retries of lost requests."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from dgpo_core.errors import UserError
from dgpo_remote.failures import Down, InvalidResponse, as_object
from dgpo_remote.posix import require_posix
from dgpo_remote.reward import RemoteReward
from dgpo_remote.servers import End, Server, Servers
from dgpo_remote.worker.process import WorkerProcess, WorkerSpec, resolve

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_schemas.sections.rewards import RewardBlock, WorkerSection

__all__ = ["WorkerReward", "connect"]

T = TypeVar("T")
FIRST_WAIT = 0.05
"""Seconds before a worker is restarted after its first failure."""


def connect(block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
    """The reward of a block with a `worker`, ready to score (`dgpo_core.rewards.Connect`)."""
    assert block.worker is not None
    require_posix(f"{where}.worker")
    return WorkerReward(block, block.worker, device=device, where=where).face


class Worker:
    """A slot for one process (`servers.End`), which is restarted when it is gone."""

    name = "the worker"

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the process. Raises UserError."""
        self.spec = spec
        self.busy = threading.Lock()
        self.process: WorkerProcess | None = WorkerProcess(spec)
        self._closed = False
        self._exchange = threading.Lock()

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Send a request to the process, which is restarted first if it has ended. Returns the payload."""
        with self.busy:
            process = self.process
            if process is None or process.ended:
                process = self._restart()
            return process.ask(path, body or b"")

    def ask_json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Send a request and return the JSON object of the response."""
        answer = as_object(self.ask(path, body))
        if answer is None:
            raise InvalidResponse("did not respond with a JSON object")
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
        """Kill the process, so that it is restarted before the next request."""
        with self._exchange:
            process = self.process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Stop the process, or kill it if it is handling a request."""
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
    """A reward that `count` worker processes score in parallel."""

    gave_up = "the worker was lost {times} times with this batch; the last one {error}"

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
            descriptions = [worker.process.greet() for worker in workers if worker.process is not None]
        except BaseException:
            for worker in workers:
                if worker.process is not None:
                    worker.process.kill()
            raise
        servers = Servers(workers, 1, where, first_wait=FIRST_WAIT, restarted=True)
        super().__init__(block, servers, device=device, where=where, timeout=section.timeout, retries=section.retries)
        self._patience = math.inf  # a busy worker becomes free within its timeout
        self._adopt(descriptions[0], concurrency=section.count)

    def _from(self, server: Server, send: Callable[[End], T]) -> T:
        """Send a request to one worker. A process that sends an invalid response is killed, as one that crashed."""
        try:
            return super()._from(server, send)
        except InvalidResponse:
            assert isinstance(server.end, Worker)
            server.end.drop()
            raise
