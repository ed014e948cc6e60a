"""Runs the command line, with the toy parts, in processes that meet with something at a moment chosen in advance.

Started as a program it imports the engine, and the modules and names (MODULE:NAME) of its arguments, once and serves
requests, one JSON line each. Every run is a forked process of its own, so a whole life (start, train, be killed) takes
little longer than the training itself.

A request is {"arguments": [...], "at": [moment, n], "do": deed}: what `dgpo` is called with, and what happens when the
moment comes for the n-th time ("clock": after n milliseconds). With "background": true the answer comes as soon as the
process waits, and {"collect": number} waits for its end. "environment" has more variables for the process, and
{"together": [requests]} starts several processes at once and is answered by {"ended": [their answers]}. An answer is
{"status": exit code, or minus the signal; "output": what it printed; "counts": how often each moment came, unless it
was killed}. The counts include each collective, as "KIND PLACE BYTES" (`watch_collectives`).
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
import torch.distributed as dist
from hard_toy import hard_plugin

import dgpo_core.storage.checkpoint
import dgpo_core.storage.run_directory
import dgpo_core.training.executors
from dgpo_cli.main import main
from dgpo_core.distributed.processes import Processes
from dgpo_core.plugins.registry import get_registry
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.evaluation import Evaluator
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import BrightnessReward, ToyBackbone, plugin, run_data, sizes_plugin
from dgpo_schemas.run import RunConfig

LONGEST = 180
"""Seconds after which a process that hangs is ended by SIGALRM."""


class Moments:
    """Counts moments, and does the deed when its own comes."""

    def __init__(self, at: tuple[str, int] | None, do: str, ready: int) -> None:
        self.at = at
        self.do = do
        self.ready = ready
        self.counts: Counter[str] = Counter()

    def before(self, owner: Any, name: str, moment: str) -> None:
        """Let a moment come before each call of a function."""
        original = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            if self.comes(moment):
                self.act()
            return original(*arguments, **keywords)

        setattr(owner, name, watched)

    def half(self, owner: Any, name: str, moment: str) -> None:
        """Let a moment come when a function has written half of what it writes to the file among its arguments."""
        original = getattr(owner, name)

        def watched(*arguments: Any) -> None:
            here = self.comes(moment)
            path = next(a for a in arguments if isinstance(a, Path))
            before = path.stat().st_size if path.exists() else 0
            original(*arguments)
            if here:
                os.truncate(path, (before + path.stat().st_size) // 2)
                self.act()

        setattr(owner, name, watched)

    def comes(self, moment: str) -> bool:
        """Count a moment; is it the one?"""
        self.counts[moment] += 1
        return self.at == (moment, self.counts[moment])

    def act(self) -> None:
        """Do the deed."""
        match self.do:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "terminate":
                signal.raise_signal(signal.SIGTERM)
            case "interrupt":
                signal.raise_signal(signal.SIGINT)
            case "warn of the end":
                signal.raise_signal(signal.SIGUSR1)
            case "hang up":
                signal.raise_signal(signal.SIGHUP)
            case "interrupt twice":
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            case "wait":
                os.write(self.ready, b"!")
                while True:
                    signal.pause()
            case "run out of memory":
                raise torch.OutOfMemoryError("CUDA out of memory")
            case "hang for 10 seconds":
                time.sleep(10)
            case "hang, interrupted twice":
                _hang_interrupted_twice()
            case _:
                raise ValueError(self.do)


COLLECTIVES = {
    "all_reduce": ("all_reduce",), "list": ("all_gather",),
    "all_gather": ("all_gather_single", "all_gather_into_tensor"),
    "reduce_scatter": ("reduce_scatter_single", "reduce_scatter_tensor"),
}  # fmt: skip
"""Names in newer and in older versions of torch; `list` gathers a list of tensors."""


def watch_collectives(moments: Moments) -> None:
    """Count collectives by kind, place (device, host, or a part of the ranks) and bytes of the whole message."""
    hosts: list[Any] = []
    join = Processes.join

    def joined(**keywords: Any) -> Processes:
        processes = join(**keywords)
        hosts.append(processes._host)
        return processes

    Processes.join = staticmethod(joined)  # type: ignore[method-assign]

    def watched(kind: str, original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            group = keywords.get("group")
            ranks = dist.get_world_size(group)
            place = "host" if group is not None and group in hosts else "device"
            place = place if ranks == dist.get_world_size() else f"{ranks} ranks"
            tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor | list)]
            size = max(
                sum(t.nbytes for t in ([value] if isinstance(value, torch.Tensor) else value)) for value in tensors
            )
            moments.counts[f"{kind} {place} {size}"] += 1
            return original(*arguments, **keywords)

        return call

    for kind, names in COLLECTIVES.items():
        name = next(name for name in names if hasattr(dist, name))
        setattr(dist, name, watched(kind, getattr(dist, name)))


def _hang_interrupted_twice() -> NoReturn:
    """On the rewards' thread; signals reach the main one."""
    heard = threading.Event()
    request = StopRequest.request

    def hear(stop: StopRequest) -> None:
        request(stop)
        heard.set()

    StopRequest.request = hear  # type: ignore[method-assign,assignment]
    os.kill(os.getpid(), signal.SIGINT)
    heard.wait()
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        threading.Event().wait()


def live(request: dict[str, Any], output: IO[bytes], counts: IO[bytes], ready: int) -> NoReturn:
    """The life of a forked process."""
    signal.alarm(LONGEST)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output.fileno(), stream.fileno())
    os.environ.update(request.get("environment", {}))
    at = request.get("at")
    moments = Moments((at[0], at[1]) if at else None, request.get("do", "kill"), ready)
    dgpo_core.training.executors.PATIENCE = 0.1
    moments.before(ToyBackbone, "velocity", "velocity")
    moments.before(Evaluator, "evaluate", "evaluate")
    moments.before(BrightnessReward, "score", "score")
    vars(os)["fsync"] = lambda handle: None  # what the kernel has survives the process; a disk would only cost time
    for name in ("fsync", "rename", "replace", "unlink"):
        moments.before(os, name, name)
    moments.before(dgpo_core.storage.run_directory, "append_json", "append")
    moments.before(Processes, "_collective", "host")
    moments.before(Processes, "_meet", "meet")  # where ranks with GPUs would, see test_meetings
    moments.before(Processes, "all_reduce_sum", "all_reduce on the device")
    if at is not None and at[0] == "clock":  # milliseconds
        killer = threading.Timer(at[1] / 1000, os.kill, (os.getpid(), signal.SIGKILL))
        killer.daemon = True
        killer.start()
    watch_collectives(moments)
    moments.half(dgpo_core.storage.run_directory, "append_json", "half a line")
    moments.half(dgpo_core.storage.checkpoint, "_save_tensors", "half a tensor file")
    try:
        main(request["arguments"])
    except SystemExit as end:
        counts.write(json.dumps(moments.counts).encode())
        counts.flush()
        if at is None or "WORLD_SIZE" in os.environ:  # the interpreter's own end takes longer than the training
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise
    raise AssertionError("main exits")


class Server:
    """Answers requests."""

    def __init__(self) -> None:
        self.files: dict[int, tuple[IO[bytes], IO[bytes]]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, one answer."""
        if "together" in request:
            numbers = [self.start(one) for one in request["together"]]
            return {"ended": [self.answer({"collect": number}) for number in numbers]}
        number = request.get("collect")
        if number is None:
            number = self.start(request)
            if request.get("background"):
                return {"number": number}
        status = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
        output, counts = (_read(file) for file in self.files.pop(number))
        return {"status": status, "output": output, "counts": json.loads(counts or "{}")}

    def start(self, request: dict[str, Any]) -> int:
        """The number of a new process; one in the background has come to its moment."""
        output, counts = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 - `answer` closes them
        hear, ready = os.pipe()
        number = os.fork()
        if number == 0:
            self.files.clear()  # the other processes are not this one's to end
            live(request, output, counts, ready)
        os.close(ready)
        if request.get("background"):
            os.read(hear, 1)
        os.close(hear)
        self.files[number] = output, counts
        return number

    def close(self) -> None:
        """End what still lives."""
        for number, files in self.files.items():
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
            for file in files:
                file.close()


def _read(file: IO[bytes]) -> str:
    with file:
        file.seek(0)
        return file.read().decode()


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Until there are no more requests."""
    server = Server()
    try:
        for line in requests:
            answers.write(json.dumps(server.answer(json.loads(line))) + "\n")
            answers.flush()
    finally:
        server.close()


def warm_up() -> None:
    """Train once, so that everything is imported before the first fork; no thread outlives a training."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        data = run_data(directory, run={"iterations": 1})
        Trainer(RunConfig.model_validate(data), get_registry()).train()
    assert threading.active_count() == 1
    gc.freeze()


if __name__ == "__main__":
    get_registry().register(plugin, distribution="toy")
    get_registry().register(sizes_plugin, distribution="toy-sizes")
    get_registry().register(hard_plugin, distribution="hard-toy")
    for name in sys.argv[1:]:
        pkgutil.resolve_name(name)
    warm_up()
    serve(sys.stdin, sys.stdout)
