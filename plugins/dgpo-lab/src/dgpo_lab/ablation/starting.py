"""Start the processes of cells: as fresh processes, or forked from one that has imported what they need."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

from dgpo_core.errors import UserError
from dgpo_core.system.files import open_to_append
from dgpo_core.system.forking import Forked, ForkServer, NotForked, ServerLost, can_fork
from dgpo_core.system.reading import why
from dgpo_core.system.supervising import Child

__all__ = ["Launch", "WarmStart", "launching", "start"]

log = logging.getLogger(__name__)
Launch: TypeAlias = Callable[..., Child | Forked]
"""Starts `dgpo train`: see `start`."""


def start(file: Path, *, resume: bool, log: Path, environment: Mapping[str, str]) -> Child:
    """`dgpo train` on a run file, with `environment` on top of this process's; Ctrl-C reaches it through us alone."""
    command = [sys.executable, "-P", "-m", "dgpo_cli.child", str(os.getpid()), *_train(file, resume=resume)]
    with _opened(log) as output:
        return Child(command, environment={**os.environ, **environment}, output=output)


@contextmanager
def launching(*, on_cpu: bool, say: Callable[[str], None]) -> Iterator[Launch]:
    """Yield how to start cells: forked if they run on the CPU and the system can fork. CUDA does not survive a fork.

    say: called with a message if the process from which cells are forked is lost.
    """
    if not (on_cpu and can_fork()):
        yield start
        return
    warm = WarmStart(say)
    try:
        yield warm
    finally:
        warm.close()


class WarmStart:
    """Starts cells like `start`, but forks them from a server (`dgpo_cli.warm`), which saves the time of imports.

    A cell's process is otherwise like a fresh one. Where it would not be, `start` starts it.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._server: ForkServer | None = None
        self._environment: Mapping[str, str] = {}
        self._refused = False

    def __call__(self, file: Path, *, resume: bool, log: Path, environment: Mapping[str, str]) -> Child | Forked:
        """Start a cell; see `start`."""
        server = self._server_with(environment)
        if server is not None:
            with _opened(log) as output:
                found = self._forked(server, _train(file, resume=resume), output)
            if found is not None:
                return found
        return start(file, resume=resume, log=log, environment=environment)

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.close()

    def _server_with(self, environment: Mapping[str, str]) -> ForkServer | None:
        """Return the server, or None if there is none with these environment variables."""
        if self._server is None and not self._refused:
            self._environment = dict(environment)
            try:
                command = [sys.executable, "-P", "-m", "dgpo_cli.warm"]
                self._server = ForkServer(command, environment={**os.environ, **environment})
            except OSError as error:
                self._refuse(why(error))
        return None if self._refused or environment != self._environment else self._server

    def _forked(self, server: ForkServer, arguments: list[str], output: IO[bytes]) -> Forked | None:
        try:
            return server.start(arguments, output=output)
        except NotForked as reason:
            self._refuse(str(reason))
        except ServerLost:
            self._refuse("it has ended")
            self._say("the process from which cells start has ended; cells start without it, which takes longer")
        return None

    def _refuse(self, reason: str) -> None:
        self._refused = True
        log.debug("cells start as fresh processes: %s", reason)


def _train(file: Path, *, resume: bool) -> list[str]:
    return ["train", str(file), *(["--resume"] if resume else [])]


def _opened(log: Path) -> IO[bytes]:
    try:
        return os.fdopen(open_to_append(log), "ab")
    except OSError as error:
        raise UserError(f"cannot write {log}: {why(error)}") from error
