"""The client side of one worker process: start, requests and termination."""

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
from dgpo_remote.failures import Down, as_object, raise_reward_error, reported_error
from dgpo_remote.worker.channel import LONGEST, Channel
from dgpo_remote.worker.interpreter import why_it_did_not_greet, why_it_did_not_start
from dgpo_schemas.service import WORKERS, RewardDescription
from dgpo_schemas.text import clean

__all__ = ["WorkerProcess", "WorkerSpec", "resolve"]

log = logging.getLogger(__name__)

MODULE = "dgpo_remote.worker.worker_main"
GRACE = 5.0
"""Seconds that an idle worker gets to exit by itself."""
OK = "200"
"""Status of a success; any other status comes with an `ErrorAnswer`."""
OF_THE_INTERPRETER = ("PYTHONPATH", "PYTHONHOME")
"""Variables that would make another interpreter import this interpreter's packages."""


@dataclass(frozen=True)
class WorkerSpec:
    """How to start a worker, and the reward that it loads."""

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
        """The environment variables of the process."""
        removed: tuple[str, ...] = LAUNCHER_VARIABLES
        if not _is_this_interpreter(self.python):
            removed = (*removed, *OF_THE_INTERPRETER)
        if any(name in self.environment for name in KNOWN):  # it sets its own OpenMP wait policy
            removed = (*removed, *KNOWN)
        inherited = {name: value for name, value in os.environ.items() if name not in removed}
        return inherited | dict(self.environment)

    def orders(self) -> dict[str, Any]:
        """Return the body of the process's first request, /load."""
        # A device index refers to the GPUs that the run sees; the worker may see others.
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
    """A worker process. `greet` waits until its reward is loaded. It handles one request at a time."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Start the interpreter. Raises UserError if it cannot be started."""
        self.spec = spec
        local, remote = socket.socketpair()
        arguments = [spec.python, "-u", "-P", "-X", "faulthandler", "-m", MODULE]
        try:
            self._child = Child(
                [*arguments, str(remote.fileno()), str(os.getpid())],
                environment=spec.variables,
                pass_fds=[remote.fileno()],
                output=self._log_output,  # stdout of the reward joins its stderr
            )
        except (OSError, ValueError) as error:
            local.close()
            raise UserError(f"{spec.where}.worker.python: {why_it_did_not_start(spec.python, error)}") from error
        finally:
            remote.close()
        self._channel = Channel(local)
        self._requests = 0  # requests so far, and the number of the last one
        self._warned = False  # whether a late or duplicate response was logged

    def _log_output(self, line: str) -> None:
        log.debug("%s: worker: %s", self.spec.where, clean(line, 1000, lines=True))

    @property
    def pid(self) -> int:
        """Process ID."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether the process was killed, which also happens whenever it is lost."""
        return self._child.killed

    def greet(self) -> RewardDescription:
        """Wait until the reward is loaded, and return its description. Raises UserError for every failure."""
        spec, deadline = self.spec, time.monotonic() + self.spec.start_timeout
        hello = self._hello(deadline)
        if hello.get("protocol") != WORKERS:
            version, protocol = (clean(str(hello.get(key)), 40) for key in ("dgpo", "protocol"))
            raise UserError(
                f"{spec.where}.worker.python: {spec.python} has dgpo {version}, whose workers use protocol version "
                f"{protocol}; this run uses version {WORKERS}: install the same version of dgpo in both environments"
            )
        try:
            status, answer = self._exchange("/load", json.dumps(spec.orders()).encode(), deadline, "start_timeout")
        except Down as error:
            self.kill()
            raise UserError(f"{spec.where}: the worker for {spec.use} {error}") from error
        if status != OK:
            self.kill()
            raise UserError(self._refusal(*_error(answer)))
        try:
            return RewardDescription.model_validate(as_object(answer))
        except ValidationError as error:
            self.kill()
            raise UserError(
                f"{spec.where}: the worker for {spec.use} sent an invalid description of it: "
                f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
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
        """Send a request and return the response's payload.

        Raises Down, and RewardRaised and OutOfMemory with the reward's own message.
        """
        if len(body) > LONGEST:
            raise OutOfMemory(f"a batch of {len(body) / 2**30:.1f} GiB is larger than {LONGEST >> 30} GiB")
        status, answer = self._exchange(path, body, time.monotonic() + self.spec.timeout, "timeout")
        if status == OK:
            return answer
        kind, message = _error(answer)
        raise_reward_error(kind, message)
        self.kill()
        raise Down(f"responded with an error of kind {kind}: {message}")

    def _exchange(self, path: str, body: bytes, deadline: float, patience: str) -> tuple[str, bytes]:
        """Send a request and return (status, payload). Raises Down. patience: the option that sets the deadline."""
        try:
            return self._answer(path, body, deadline)
        except TimeoutError:
            self.kill()
            allowed = getattr(self.spec, patience)
            message = f"did not respond within {allowed:g} s (worker.{patience}) and was killed{self._last_words()}"
            raise Down(message) from None
        except EOFError:
            raise Down(self._how_it_ended()) from None
        except BaseException:  # an invalid response, or an interruption in the middle of a frame
            self.kill()
            raise

    def _answer(self, path: str, body: bytes, deadline: float) -> tuple[str, bytes]:
        """Send a request and wait for its response. Responses to earlier requests are dropped."""
        self._requests += 1
        self._channel.send(body, number=self._requests, about=path, deadline=deadline)
        while True:
            number, status, answer = self._channel.receive(deadline=deadline, alive=self._alive)
            if number == self._requests:
                return status, answer
            if not 0 < number < self._requests:
                raise Down(f"sent an invalid response: for request {number}, expected {self._requests}")
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s: the worker sent a late or duplicate response; responses to earlier batches are dropped",
                    self.spec.where,
                )

    def _alive(self) -> bool:
        return self._child.poll() is None

    def _how_it_ended(self) -> str:
        """Describe how the process ended."""
        try:
            code = self._child.wait(GRACE)
        except TimeoutError:  # it closed its socket but did not exit
            code = None
        self.kill()
        return f"{'closed its connection' if code is None else fate(code)}{self._last_words()}"

    def _last_words(self) -> str:
        """Return the last lines of the process's output, as the end of a message; empty if there are none."""
        lines = [clean(line, 1000, lines=True) for line in self._child.last_lines(8)]
        return "; its last output:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""

    def stop(self) -> None:
        """Stop the process: with a request if it is idle and responds, otherwise with SIGKILL."""
        try:
            deadline = time.monotonic() + GRACE
            self._answer("/stop", b"", deadline)
            self._child.wait(max(0.1, deadline - time.monotonic()))
        except (EOFError, TimeoutError, Down):
            pass
        self.kill()

    def kill(self) -> None:
        """Kill the process and its children, and close the channel. Idempotent and thread-safe."""
        self._child.kill()
        self._channel.close()


def _error(answer: bytes) -> tuple[str, str]:
    """Return (kind, message) of an error response, even if it is malformed."""
    kind, message = reported_error(answer) or ("unknown", "")
    return kind, message or "no reason given"


def _is_this_interpreter(python: str) -> bool:
    """Whether the path is this process's interpreter, under any name.

    Virtual environments link to the same program, so the directory is compared too.
    """

    def place(path: str) -> tuple[str, str]:
        return os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.realpath(path)

    return place(shutil.which(python) or python) == place(sys.executable)


def resolve(python: str | None) -> str:
    """Return the interpreter of a worker section: a path (~ is the home directory), or a name on PATH."""
    return sys.executable if python is None else str(Path(python).expanduser())
