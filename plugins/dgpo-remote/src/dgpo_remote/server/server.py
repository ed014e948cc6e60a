"""Running the service: the port, the signals, and an end at which nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import uvicorn

from dgpo_core.errors import UserError
from dgpo_core.rewards import place
from dgpo_core.system.device import choose_device
from dgpo_remote.server.app import Service
from dgpo_remote.server.batcher import Batcher
from dgpo_remote.server.connections import Connection
from dgpo_remote.server.counters import Counters
from dgpo_remote.server.descriptors import ACCEPTED
from dgpo_remote.server.listening import Listening
from dgpo_remote.tokens import read_token
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import AnyReward
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.serve import ServeConfig

__all__ = ["Server", "bind", "run"]

log = logging.getLogger(__name__)

BACKLOG = 1024
"""Callers that wait to be let in, if the system allows as many; further ones try again after a second. Those who have
gone meanwhile count too."""
FLUSH = 0.3
"""Seconds that answers are given to be taken when the service ends."""
GRACE = 1.7
"""Seconds beyond drain_seconds after which the process ends, whatever it is at."""


def run(config: ServeConfig, registry: Registry, say: Callable[[str], None]) -> None:
    """Serve in this thread until a signal ends it. Raises UserError."""
    token = read_token(config.token_variable)
    device = choose_device(config.device, "device")
    listening = bind(config.host, config.port)
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # of the threads that are started from now on, too
    server = Server(config, load(config, registry, device), token, listening, say)
    server.on_ready = _settle
    try:
        server.run()
    finally:
        listening.close()
    if server.batcher.failure is not None:
        raise server.batcher.failure


def _settle() -> None:
    """What other threads do must not keep the event loop waiting. What is in memory now stays there: looking through
    all of it whenever a request brings many objects would stop everything for a tenth of a second. So would collecting
    what a thousand requests have left behind at one go."""
    gc.freeze()
    gc.set_threshold(5_000, 10, 100)
    sys.setswitchinterval(0.001)


def load(config: ServeConfig, registry: Registry, device: torch.device) -> Callable[[], AnyReward]:
    """Builds the reward when it is called."""

    def build() -> AnyReward:
        reward = config.reward
        block = RewardBlock(use=reward.use, options=reward.options, worker=reward.worker)
        return place(block, registry, device=device, where="reward")

    return build


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError, naming the port or the host, if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host: {host} is no address of this machine: {getattr(error, 'strerror', error)}") from error
    made = Listening(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise UserError(_why_not_bound(host, port, error)) from error
    return made


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port: {port} on {host} is in use by another program; choose another, such as --set port={port + 1}"
    if error.errno == errno.EACCES:
        return f"port: {port} may not be used by this user; choose one from 1024 upwards"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host: {host} is no address of this machine"
    return f"port: cannot listen at {host}:{port}: {error.strerror}"


class Server(uvicorn.Server):
    """uvicorn, which drains when it is asked to end: not ready, no new work, then the end of what is under way."""

    def __init__(
        self,
        config: ServeConfig,
        load: Callable[[], AnyReward],
        token: str | None,
        listening: socket.socket,
        say: Callable[[str], None],
    ) -> None:
        counters = Counters()
        self.batcher = Batcher(load, config.batching, counters)
        self.service = Service(config, self.batcher, counters, token)
        self.url = _url(config.host, listening)
        self._serve_config = config
        self._listening = listening
        self._say = say
        self._said_ready = False
        self._drain_until = 0.0
        self._report_problem = -math.inf
        self.on_ready: Callable[[], object] = lambda: None
        super().__init__(
            uvicorn.Config(
                self.service.app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http=self._connection,  # type: ignore[arg-type]
                loop="asyncio",
                server_header=False,
                backlog=ACCEPTED,
            )
        )

    def _connection(self, config: uvicorn.Config, server_state: Any, _loop: Any = None, **_: Any) -> Connection:
        return Connection(self.service.app, self.service.pool, config, server_state, _loop)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the reward and serve until the end."""
        self._say(f"loading {self._serve_config.reward.use}; listening at {self.url}")
        self.batcher.start()
        self.service.readers.start()
        try:
            super().run([self._listening])
        finally:
            self.service.readers.close()
            self.service.close()
            self.batcher.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, and no traceback for what the loop meets, such as a lack of descriptors."""
        asyncio.get_running_loop().set_exception_handler(self._trouble)
        await super().startup(sockets)
        self._listening.listen(BACKLOG)  # uvicorn has made it as short as what is accepted at a time

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._report_problem >= 1:
            self._report_problem = now
            error = context.get("exception")
            log.error("%s%s", context.get("message"), f": {error_text(error)}" if error is not None else "")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connections; answers are given a moment to be taken; then all ends."""
        for server in self.servers:
            server.close()
        pool, until = self.service.pool, time.monotonic() + FLUSH
        while pool.connections and time.monotonic() < until and not self.force_exit:
            pool.close()
            await asyncio.sleep(0.02)
        pool.abort()
        for task in self.server_state.tasks:
            task.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain; a second Ctrl-C: end at once. uvicorn would also raise the signal again at the end, and the
        exit status would not be 0."""
        if self.service.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            _end_process(GRACE)
        elif not self.service.draining:
            _end_process(self._serve_config.drain_seconds + GRACE)
        self.drain()

    def drain(self) -> None:
        """Begin to end."""
        if not self.service.draining:
            self.service.draining = True
            self._drain_until = time.monotonic() + self._serve_config.drain_seconds
            self._say(f"draining: {self.service.inside} requests under way")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to end?"""
        self.service.pool.sweep()
        if self.batcher.reward is not None and not self._said_ready and not self.service.draining:
            self._said_ready = True
            self._say(f"ready: {self._serve_config.reward.use} at {self.url}")
            self.on_ready()
        if self.batcher.failure is not None:
            return True
        if self.service.draining:
            late = time.monotonic() > self._drain_until
            if late and self.service.inside:
                log.warning("%d requests did not finish within drain_seconds", self.service.inside)
            return late or self.service.inside == 0 or self.force_exit
        return await super().on_tick(counter)


def _end_process(seconds: float) -> None:
    """End this process with status 0 after so many seconds, if it is still there then: a reward's threads, or whatever
    a library has left to be done at the end, may last for ever."""

    def wait() -> None:
        time.sleep(seconds)
        log.warning("something did not end within drain_seconds; it was left behind")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)

    threading.Thread(target=wait, name="end", daemon=True).start()


def _url(host: str, listening: socket.socket) -> str:
    name = host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
