"""One worker process: started, asked, and ended, whatever state it is in."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_core.system.openmp import KNOWN
from dgpo_core.training.memory import OutOfMemory
from dgpo_remote.messages import Blob, Malformed, pack
from dgpo_remote.reward import RewardRaised
from dgpo_remote.worker.channel import LONGEST, Channel
from dgpo_remote.worker.interpreter import why_it_did_not_greet, why_it_did_not_start
from dgpo_schemas.service import WORKERS, RewardDescription
from dgpo_schemas.text import clean

__all__ = ["Lost", "Recipe", "WorkerProcess", "resolve"]

log = logging.getLogger(__name__)

MODULE = "dgpo_remote.worker.worker_main"
LINES = 50
"""Lines of a worker's output that are kept for messages."""
GRACE = 5.0
"""Seconds that an idle worker is given to end by itself."""
OF_THE_RUN = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
)  # fmt: skip
"""Variables with which a launcher makes a process one of many. A worker that had them would wait for the others."""
OF_THE_INTERPRETER = ("PYTHONPATH", "PYTHONHOME")
"""Variables that lead an interpreter to the packages of another one."""


class Lost(Exception):
    """The process ended or hung before it answered."""


@dataclass(frozen=True)
class Recipe:
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
        left = OF_THE_RUN if _is_ours(self.python) else (*OF_THE_RUN, *OF_THE_INTERPRETER)
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

    def __init__(self, recipe: Recipe) -> None:
        """Start the interpreter. Raises UserError if there is none."""
        self.recipe = recipe
        here, there = socket.socketpair()
        arguments = [recipe.python, "-u", "-P", "-X", "faulthandler", "-m", MODULE]
        try:
            self._process = subprocess.Popen(
                [*arguments, str(there.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # prints of the reward: they go where its errors go
                stderr=subprocess.STDOUT,
                env=recipe.variables,
                pass_fds=[there.fileno()],
                process_group=0,  # so that what it starts ends with it
            )
        except (OSError, ValueError) as error:
            here.close()
            raise UserError(f"{recipe.where}.worker.python: {why_it_did_not_start(recipe.python, error)}") from error
        finally:
            there.close()
        self._channel = Channel(here)
        self._output = Output(self._process, recipe.where)
        self._ending = threading.Lock()
        self._ended = False
        self._asked = 0  # questions so far; the number of the last one
        self._strayed = False  # it has answered one of them late or twice

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it was killed, which it is whenever it was lost."""
        return self._ended

    def greet(self) -> RewardDescription:
        """Wait until the reward is loaded. Raises UserError for whatever keeps it from being so."""
        recipe, deadline = self.recipe, time.monotonic() + self.recipe.start_timeout
        hello = self._hello(deadline)
        if hello.get("protocol") != WORKERS:
            theirs, spoken = (clean(str(hello.get(key)), 40) for key in ("dgpo", "protocol"))
            raise UserError(
                f"{recipe.where}.worker.python: {recipe.python} has dgpo {theirs}, whose workers speak "
                f"version {spoken} of the protocol; this run speaks version {WORKERS}: install the "
                "same version of dgpo in both environments"
            )
        try:
            blob = self._exchange(json.dumps(recipe.orders()).encode(), deadline, "start_timeout")
        except Lost as error:
            self.kill()
            raise UserError(f"{recipe.where}: the worker that was to load {recipe.use} {error}") from error
        if refusal := _error(blob):
            self.kill()
            raise UserError(self._refusal(*refusal))
        try:
            return RewardDescription.model_validate(blob.header)
        except ValidationError as error:
            self.kill()
            raise UserError(
                f"{recipe.where}: the worker that was to load {recipe.use} answered with something that is no "
                f"description of it: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
            ) from error

    def _hello(self, deadline: float) -> dict[str, Any]:
        waited = None
        try:
            hello = json.loads(self._channel.receive(deadline=deadline, alive=self._alive)[1])
            if isinstance(hello, dict):
                return hello
        except TimeoutError:
            waited = self.recipe.start_timeout
        except (EOFError, ValueError, RecursionError):
            pass
        self.kill()
        reason = why_it_did_not_greet(self.recipe.python, self.recipe.variables, self._output.lines, waited)
        raise UserError(f"{self.recipe.where}.worker.python: {reason}")

    def _refusal(self, kind: str, message: str) -> str:
        recipe = self.recipe
        if kind == "plugin":
            return (
                f"{recipe.where}.worker.python: {recipe.python} cannot provide {recipe.use}; install its plugin there "
                f"({recipe.python} -m pip install ...): {message}"
            )
        if kind == "user":
            return f"{recipe.where}: {message}"
        return f"{recipe.where}: the worker could not load {recipe.use}: {message}{self._output.tail()}"

    def ask(self, question: bytes) -> Blob:
        """An answer. Raises Lost, RewardRaised, OutOfMemory, and UserError if the reward refuses prompts."""
        if len(question) > LONGEST:
            raise OutOfMemory(f"a batch of {len(question) / 2**30:.1f} GiB is more than {LONGEST >> 30} GiB")
        blob = self._exchange(question, time.monotonic() + self.recipe.timeout, "timeout")
        error = _error(blob)
        if error is None:
            return blob
        kind, message = error
        match kind:
            case "memory":
                raise OutOfMemory(message)
            case "user" | "plugin":
                raise UserError(message)
        raise RewardRaised(message)

    def _exchange(self, question: bytes, deadline: float, patience: str) -> Blob:
        """Raises Lost. `patience` is the setting that the deadline comes from."""
        try:
            return Blob(self._answer(question, deadline))
        except TimeoutError:
            raise self._hung(patience) from None
        except EOFError:
            raise Lost(self._fate()) from None
        except Malformed as error:
            self.kill()
            raise Lost(f"answered nonsense: {error}") from None
        except BaseException:  # stopped in the middle of a frame, after which nothing would be understood
            self.kill()
            raise

    def _answer(self, question: bytes, deadline: float) -> bytes:
        """What the process says to this question, and to no other: answers to earlier ones are dropped."""
        where = self.recipe.where
        self._asked += 1
        self._channel.send(question, number=self._asked, deadline=deadline)
        while True:
            number, answer = self._channel.receive(deadline=deadline, alive=self._alive)
            if number == self._asked:
                return answer
            if not 0 < number < self._asked:
                raise Malformed(f"it has answered question {number} and was asked {self._asked}")
            if not self._strayed:
                self._strayed = True
                log.warning("%s: the worker answers late or twice; what it says to earlier batches is dropped", where)

    def _alive(self) -> bool:
        return self._process.poll() is None

    def _hung(self, setting: str) -> Lost:
        self.kill()
        patience = getattr(self.recipe, setting)
        return Lost(f"gave no answer within {patience:g} s (worker.{setting}) and was killed{self._output.tail()}")

    def _fate(self) -> str:
        """How the process ended, in words."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:  # it closed its socket and lives on
            self.kill()
            return f"closed its connection{self._output.tail()}"
        self.kill()
        if code >= 0:
            return f"exited with status {code}{self._output.tail()}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = ": perhaps by the system, for want of memory" if code == -signal.SIGKILL else ""
        return f"was ended by {name}{hint}{self._output.tail()}"

    def stop(self) -> None:
        """End it: gently if it is idle and listens, else by force."""
        try:
            deadline = time.monotonic() + GRACE
            self._answer(pack({"ask": "stop"}), deadline)
            self._process.wait(max(0.1, deadline - time.monotonic()))
        except (EOFError, TimeoutError, Malformed, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """End it and all that it started, and let go of everything. May be called twice, and from any thread."""
        with self._ending:
            if self._ended:
                return
            self._ended = True
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            self._channel.close()
            self._output.close()


class Output:
    """Reads what a process prints, on a thread: the last lines are kept, all go to the log at level debug."""

    def __init__(self, process: subprocess.Popen[bytes], where: str) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self._where = where
        self._closed = threading.Event()
        self._lines: deque[str] = deque(maxlen=LINES)
        self._thread = threading.Thread(target=self._read, name=f"output of {where}", daemon=True)
        self._thread.start()

    @property
    def lines(self) -> list[str]:
        """The last lines."""
        return list(self._lines)

    def tail(self, count: int = 8) -> str:
        """The last lines as the end of a message; nothing if nothing was printed."""
        lines = [line for line in self.lines if line.strip()][-count:]
        return "; its last words:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._stream, select.POLLIN)
        rest = b""
        while True:
            # Somebody that the process started may keep the pipe open for ever.
            if not poll.poll(0 if self._closed.is_set() else 200):
                if self._closed.is_set():
                    break
                continue
            data = os.read(self._stream.fileno(), 65536)
            if not data:
                break
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                self._keep(line)
            rest = rest[-65536:]
        if rest:
            self._keep(rest)

    def _keep(self, line: bytes) -> None:
        text = clean(line.decode(errors="replace").rstrip(), 1000, lines=True)
        self._lines.append(text)
        log.debug("%s: worker: %s", self._where, text)

    def close(self) -> None:
        """What was printed so far is kept."""
        self._closed.set()
        self._thread.join(GRACE)
        if not self._thread.is_alive():
            self._stream.close()


def _error(blob: Blob) -> tuple[str, str] | None:
    """(kind, message) of an answer that tells of an error, whatever the process has written there."""
    error = blob.header.get("error")
    if not error:
        return None
    told = error if isinstance(error, dict) else {"message": error}
    message = clean(str(told.get("message") or "it does not say why"), lines=True)
    return clean(str(told.get("kind")), 40), message


def _is_ours(python: str) -> bool:
    """Whether it is the interpreter that runs this, under whatever name. All environments link to one program, so
    the directory counts."""

    def place(path: str) -> tuple[str, str]:
        return os.path.realpath(os.path.dirname(os.path.abspath(path))), os.path.realpath(path)

    return place(shutil.which(python) or python) == place(sys.executable)


def resolve(python: str | None) -> str:
    """The interpreter of a worker section: a path (with ~ for the home directory) or a name on PATH."""
    return sys.executable if python is None else str(Path(python).expanduser())
