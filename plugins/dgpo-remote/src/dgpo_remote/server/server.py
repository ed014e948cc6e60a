"""Running the service: the socket, signals and graceful shutdown."""

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
"""Length of the queue of connections to accept, if the system allows it, including those closed meanwhile. Further
clients retry after a second."""
FLUSH = 0.3
"""Seconds for clients to read their responses when the service stops."""
GRACE = 1.7
"""Seconds beyond drain_seconds after which the process exits unconditionally."""


def run(config: ServeConfig, registry: Registry, say: Callable[[str], None]) -> None:
    """Serve in this thread until a signal ends it. Raises UserError."""
    token = read_token(config.token_variable)
    device = choose_device(config.device, "device")
    listening = bind(config.host, config.port)
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # also for threads that are started later
    server = Server(config, load(config, registry, device), token, listening, say)
    server.on_ready = _settle
    try:
        server.run()
    finally:
        listening.close()
    if server.batcher.failure is not None:
        raise server.batcher.failure


def _settle() -> None:
    """Tune the interpreter so that other threads and garbage collection do not delay the event loop.

    A full collection would stop everything for 0.1 s: existing objects are frozen, and new ones collected more often.
    """
    gc.freeze()
    gc.set_threshold(5_000, 10, 100)
    sys.setswitchinterval(0.001)


def load(config: ServeConfig, registry: Registry, device: torch.device) -> Callable[[], AnyReward]:
    """Return a function that builds the reward."""

    def build() -> AnyReward:
        reward = config.reward
        block = RewardBlock(use=reward.use, options=reward.options, worker=reward.worker)
        return place(block, registry, device=device, where="reward")

    return build


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises UserError, naming the port or the host, if that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(f"host: {host} is not an address of this machine: {reason}") from error
    listening = Listening(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise UserError(_why_not_bound(host, port, error)) from error
    return listening


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port: {port} on {host} is in use by another program; choose another, such as --set port={port + 1}"
    if error.errno == errno.EACCES:
        return f"port: no permission to use {port}; choose a port from 1024 upwards"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host: {host} is not an address of this machine"
    return f"port: cannot listen on {host}:{port}: {error.strerror}"


class Server(uvicorn.Server):
    """A uvicorn server with graceful shutdown: it stops accepting work and finishes the requests in progress."""

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
        self._last_problem = -math.inf
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
        """Load the reward and serve until a signal stops the service."""
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
        """Start as uvicorn does, but log errors of the event loop, such as a lack of descriptors, without traceback."""
        asyncio.get_running_loop().set_exception_handler(self._trouble)
        await super().startup(sockets)
        self._listening.listen(BACKLOG)  # uvicorn shortened the backlog to `ACCEPTED`

    def _trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last_problem >= 1:
            self._last_problem = now
            error = context.get("exception")
            log.error("%s%s", context.get("message"), f": {error_text(error)}" if error is not None else "")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting connections, give clients a moment to read their responses, and close everything."""
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
        """Drain on a signal; stop immediately on a second Ctrl-C.

        uvicorn's own handler would raise the signal again at the end, with a nonzero exit status.
        """
        if self.service.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            _end_process(GRACE)
        elif not self.service.draining:
            _end_process(self._serve_config.drain_seconds + GRACE)
        self.drain()

    def drain(self) -> None:
        """Begin the graceful shutdown."""
        if not self.service.draining:
            self.service.draining = True
            self._drain_until = time.monotonic() + self._serve_config.drain_seconds
            self._say(f"stopping: {self.service.inside} requests in progress")

    async def on_tick(self, counter: int) -> bool:
        """Enforce timeouts, and return whether to stop. Called ten times per second."""
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
    """Exit with status 0 after `seconds` if the process is still running: threads or exit handlers may hang."""

    def wait() -> None:
        time.sleep(seconds)
        log.warning("a thread or an exit handler did not finish within drain_seconds and was abandoned")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)

    threading.Thread(target=wait, name="end", daemon=True).start()


def _url(host: str, listening: socket.socket) -> str:
    name = host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
