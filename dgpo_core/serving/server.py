"""Running the service: the port, the signals, and an end at which nothing is lost."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import torch
import uvicorn

from dgpo_core.distributed import choose_device
from dgpo_core.errors import UserError
from dgpo_core.placement import place
from dgpo_core.serving.app import Service
from dgpo_core.serving.batcher import Batcher
from dgpo_core.serving.counters import Counters
from dgpo_schemas.run import RewardBlock

if TYPE_CHECKING:
    from dgpo_core.contracts import RewardModel
    from dgpo_core.registry import Registry
    from dgpo_schemas.serve import ServeConfig

__all__ = ["Server", "bind", "run"]

log = logging.getLogger(__name__)

KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than callers keep theirs, so that none is closed under a request."""


def run(config: ServeConfig, registry: Registry, say: Callable[[str], None]) -> None:
    """Serve in this thread until a signal ends it. Raises UserError."""
    token = read_token(config.token_variable)
    device = _device(config.device)
    listening = bind(config.host, config.port)
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # of the threads that are started from now on, too
    server = Server(config, load(config, registry, device), token, listening, say)
    try:
        server.run()
    finally:
        listening.close()
    if server.batcher.failure is not None:
        raise server.batcher.failure


def load(config: ServeConfig, registry: Registry, device: torch.device) -> Callable[[], RewardModel]:
    """Builds the reward when it is called."""

    def build() -> RewardModel:
        reward = config.reward
        block = RewardBlock(use=reward.use, options=reward.options, worker=reward.worker)
        return place(block, registry, device=device, where="reward")

    return build


def read_token(variable: str | None) -> str | None:
    """The token that callers must send. Raises UserError if its variable is not set."""
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise UserError(f"token_variable: the environment variable {variable} is not set; export it with a long secret")
    return token


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except UserError as error:
        raise UserError(str(error).removeprefix("run.")) from error


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError, naming the port or the host, if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"host: {host} is no address of this machine: {getattr(error, 'strerror', error)}") from error
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
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
        load: Callable[[], RewardModel],
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
        super().__init__(
            uvicorn.Config(
                self.service.app,
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                http="h11",
                loop="asyncio",
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=1,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Load the reward and serve until the end."""
        self._say(f"loading {self._serve_config.reward.use}; listening at {self.url}")
        self.batcher.start()
        self.service.readers.start()
        try:
            super().run([self._listening])
        finally:
            self.service.readers.close()
            self.batcher.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: drain; a second Ctrl-C: end at once. uvicorn would also raise the signal again at the end, and the
        exit status would not be 0."""
        if self.service.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
        self.drain()

    def drain(self) -> None:
        """Begin to end."""
        if not self.service.draining:
            self.service.draining = True
            self._drain_until = time.monotonic() + self._serve_config.drain_seconds
            self._say(f"draining: {self.service.inside} requests under way")

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to end?"""
        if self.batcher.reward is not None and not self._said_ready and not self.service.draining:
            self._said_ready = True
            self._say(f"ready: {self._serve_config.reward.use} at {self.url}")
        if self.batcher.failure is not None:
            return True
        if self.service.draining:
            late = time.monotonic() > self._drain_until
            if late and self.service.inside:
                log.warning("%d requests did not finish within drain_seconds", self.service.inside)
            return late or self.service.inside == 0 or self.force_exit
        return await super().on_tick(counter)


def _url(host: str, listening: socket.socket) -> str:
    name = host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{listening.getsockname()[1]}"
