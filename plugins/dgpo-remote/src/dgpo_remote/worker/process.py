"""One worker process: started, asked, and ended, whatever state it is in."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_core.system.openmp import KNOWN
from dgpo_core.system.supervising import LAUNCHER_VARIABLES, Child, fate
from dgpo_core.training.memory import OutOfMemory
from dgpo_remote.failures import Down, as_object, raise_own, reported_error
from dgpo_remote.worker.channel import LONGEST, Channel
from dgpo_remote.worker.interpreter import why_it_did_not_greet, why_it_did_not_start
from dgpo_schemas.service import WORKERS, RewardDescription
from dgpo_schemas.text import clean

__all__ = ["WorkerProcess", "WorkerSpec", "resolve"]

log = logging.getLogger(__name__)

MODULE = "dgpo_remote.worker.worker_main"
GRACE = 5.0
"""Seconds that an idle worker is given to end by itself."""
WELL = "200"
"""Status of an answer; another one is that of an `ErrorAnswer`."""
OF_THE_INTERPRETER = ("PYTHONPATH", "PYTHONHOME")
"""Variables that lead an interpreter to the packages of another one."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker, and what it is to load."""

    where: str
    python: str
    environment: Mapping[str, str]
    use: str
    options: Mapping[str, Any]
    device: torch.device
    start_timeout: float
    timeout: float

    @cached_property
    def variables(self) -> dict[str, str]:
        """The environment of the process."""
        left = LAUNCHER_VARIABLES if _is_ours(self.python) else (*LAUNCHER_VARIABLES, *OF_THE_INTERPRETER)
        if any(name in self.environment for name in KNOWN):  # it says how to wait: the run's way is no business of its
            left = (*left, *KNOWN)
        own = {name: value for name, value in os.environ.items() if name not in left}
        return own | dict(self.environment)

    def orders(self) -> dict[str, Any]:
        """What the process is told first."""
        # An index counts the cards that the run sees; the worker may be shown others.
        device = self.device.type if "CUDA_VISIBLE_DEVICES" in self.environment else str(self.device)
        deterministic: bool | str = torch.are_deterministic_algorithms_enabled()
        if deterministic and torch.is_deterministic_algorithms_warn_only_enabled():
            deterministic = "warn"
        settings = {
            "threads": None if "OMP_NUM_THREADS" in self.environment else torch.get_num_threads(),
            "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "deterministic": deterministic,
        }
        return {"use": self.use, "options": self.options, "device": device, "settings": settings}


class WorkerProcess:
    """A process that was spawned; `greet` waits until its reward is loaded. One request at a time."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the interpreter. Raises UserError if there is none."""
        self.spec = spec
        here, there = socket.socketpair()
        arguments = [spec.python, "-u", "-P", "-X", "faulthandler", "-m", MODULE]
        try:
            self._child = Child(
                [*arguments, str(there.fileno()), str(os.getpid())],
                environment=spec.variables,
                pass_fds=[there.fileno()],
                output=self._reported,  # prints of the reward go where its errors go
            )
        except (OSError, ValueError) as error:
            here.close()
            raise UserError(f"{spec.where}.worker.python: {why_it_did_not_start(spec.python, error)}") from error
        finally:
            there.close()
        self._channel = Channel(here)
        self._asked = 0  # questions so far; the number of the last one
        self._strayed = False  # it has answered one of them late or twice

    def _reported(self, line: str) -> None:
        log.debug("%s: worker: %s", self.spec.where, clean(line, 1000, lines=True))

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether it was killed, which it is whenever it was lost."""
        return self._child.killed

    def greet(self) -> RewardDescription:
        """Wait until the reward is loaded. Raises UserError for whatever keeps it from being so."""
        spec, deadline = self.spec, time.monotonic() + self.spec.start_timeout
        hello = self._hello(deadline)
        if hello.get("protocol") != WORKERS:
            theirs, spoken = (clean(str(hello.get(key)), 40) for key in ("dgpo", "protocol"))
            raise UserError(
                f"{spec.where}.worker.python: {spec.python} has dgpo {theirs}, whose workers speak "
                f"version {spoken} of the protocol; this run speaks version {WORKERS}: install the "
                "same version of dgpo in both environments"
            )
        try:
            status, answer = self._exchange("/load", json.dumps(spec.orders()).encode(), deadline, "start_timeout")
        except Down as error:
            self.kill()
            raise UserError(f"{spec.where}: the worker that was to load {spec.use} {error}") from error
        if status != WELL:
            self.kill()
            raise UserError(self._refusal(*_error(answer)))
        try:
            return RewardDescription.model_validate(as_object(answer))
        except ValidationError as error:
            self.kill()
            raise UserError(
                f"{spec.where}: the worker that was to load {spec.use} answered with something that is no "
                f"description of it: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
            ) from error

    def _hello(self, deadline: float) -> dict[str, Any]:
        waited = None
        try:
            hello = as_object(self._channel.receive(deadline=deadline, alive=self._alive)[2])
            if hello is not None:
                return hello
        except TimeoutError:
            waited = self.spec.start_timeout
        except EOFError:
            pass
        self.kill()
        lines = [clean(line, 1000, lines=True) for line in self._child.last_lines(50)]
        reason = why_it_did_not_greet(self.spec.python, self.spec.variables, lines, waited)
        raise UserError(f"{self.spec.where}.worker.python: {reason}")

    def _refusal(self, kind: str, message: str) -> str:
        spec = self.spec
        if kind == "plugin":
            return (
                f"{spec.where}.worker.python: {spec.python} cannot provide {spec.use}; install its plugin there "
                f"({spec.python} -m pip install ...): {message}"
            )
        if kind == "user":
            return f"{spec.where}: {message}"
        return f"{spec.where}: the worker could not load {spec.use}: {message}{self._last_words()}"

    def ask(self, path: str, body: bytes) -> bytes:
        """An answer. Raises Down, and RewardRaised and OutOfMemory with the reward's own message."""
        if len(body) > LONGEST:
            raise OutOfMemory(f"a batch of {len(body) / 2**30:.1f} GiB is more than {LONGEST >> 30} GiB")
        status, answer = self._exchange(path, body, time.monotonic() + self.spec.timeout, "timeout")
        if status == WELL:
            return answer
        kind, message = _error(answer)
        raise_own(kind, message)
        self.kill()
        raise Down(f"answered with an error of the kind {kind}: {message}")

    def _exchange(self, path: str, body: bytes, deadline: float, patience: str) -> tuple[str, bytes]:
        """(status, answer). Raises Down. `patience` is the setting that the deadline comes from."""
        try:
            return self._answer(path, body, deadline)
        except TimeoutError:
            self.kill()
            allowed = getattr(self.spec, patience)
            words = f"gave no answer within {allowed:g} s (worker.{patience}) and was killed{self._last_words()}"
            raise Down(words) from None
        except EOFError:
            raise Down(self._fate()) from None
        except BaseException:  # it answers nonsense, or was stopped in the middle of a frame
            self.kill()
            raise

    def _answer(self, path: str, body: bytes, deadline: float) -> tuple[str, bytes]:
        """What the process says to this question, and to no other: answers to earlier ones are dropped."""
        self._asked += 1
        self._channel.send(body, number=self._asked, about=path, deadline=deadline)
        while True:
            number, status, answer = self._channel.receive(deadline=deadline, alive=self._alive)
            if number == self._asked:
                return status, answer
            if not 0 < number < self._asked:
                raise Down(f"answered nonsense: it has answered question {number} and was asked {self._asked}")
            if not self._strayed:
                self._strayed = True
                log.warning(
                    "%s: the worker answers late or twice; what it says to earlier batches is dropped",
                    self.spec.where,
                )

    def _alive(self) -> bool:
        return self._child.poll() is None

    def _fate(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._child.wait(GRACE)
        except TimeoutError:  # it closed its socket and lives on
            code = None
        self.kill()
        return f"{'closed its connection' if code is None else fate(code)}{self._last_words()}"

    def _last_words(self) -> str:
        """The end of a message; nothing if nothing was printed."""
        lines = [clean(line, 1000, lines=True) for line in self._child.last_lines(8)]
        return "; its last words:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""

    def stop(self) -> None:
        """End it: gently if it is idle and listens, else by force."""
        try:
            deadline = time.monotonic() + GRACE
            self._answer("/stop", b"", deadline)
            self._child.wait(max(0.1, deadline - time.monotonic()))
        except (EOFError, TimeoutError, Down):
            pass
        self.kill()

    def kill(self) -> None:
        """End it and all that it started, and let go of everything. May be called twice, and from any thread."""
        self._child.kill()
        self._channel.close()


def _error(answer: bytes) -> tuple[str, str]:
    """(kind, message) of an answer that tells of an error, whatever the process has written there."""
    kind, message = reported_error(answer) or ("unknown", "")
    return kind, message or "it does not say why"


def _is_ours(python: str) -> bool:
    """Whether it is the interpreter that runs this, under whatever name. All environments link to one program, so
    the directory counts."""

    def place(path: str) -> tuple[str, str]:
        return os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.realpath(path)

    return place(shutil.which(python) or python) == place(sys.executable)


def resolve(python: str | None) -> str:
    """The interpreter of a worker section: a path (with ~ for the home directory) or a name on PATH."""
    return sys.executable if python is None else str(Path(python).expanduser())
