"""Makes the runs of one side. Started as a program, with that side's packages on its path; it knows nothing else of
the comparison, for the other side's tree may not have it.

It imports the engine and makes the checkpoints once. Then it serves requests, one JSON line each: {"steps": [...],
"log": FILE}, where a step is {"arguments": of `dgpo`, "processes": number, "kill": null or n}. Each process is forked,
and with "kill" process 0 is ended by SIGKILL before its n-th backward pass. The answer is null, or what went wrong.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import site
import socket
import sys
from pathlib import Path
from typing import IO, Any, NoReturn

LONGEST = 600
"""Seconds after which a process that hangs is ended by SIGALRM."""


def forget_other_trees() -> None:
    """Leave out what .pth files have put on the path: sources that the environment has installed for editing."""
    ours = os.environ["PYTHONPATH"].split(os.pathsep)
    within = (sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages())
    sys.path[:] = [p for p in sys.path if p in ours or p.startswith(within)]


def live(arguments: list[str], environment: dict[str, str], kill: int | None, log: Path) -> NoReturn:
    """The life of a forked process."""
    import torch

    from dgpo_cli.main import main

    signal.alarm(LONGEST)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(environment)
    if kill is not None:
        backward, passes = torch.autograd.backward, iter(range(1, kill))

        def watched(*tensors: Any, **keywords: Any) -> None:
            if next(passes, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            backward(*tensors, **keywords)

        torch.autograd.backward = watched
    try:
        main(arguments)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    os._exit(0)


def step(arguments: list[str], processes: int, kill: int | None, log: Path) -> str | None:
    """`dgpo` in so many processes; None if it ended as it should."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(processes):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        environment = {name: str(value) for name, value in names.items()} if processes > 1 else {}
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            live(arguments, environment, kill if rank == 0 else None, log.with_suffix(f".{rank}.log"))
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    wanted = [-signal.SIGKILL] if kill is not None else [0] * processes
    if statuses[: len(wanted)] == wanted:  # what the others of a killed one say is no matter
        return None
    worst = next(rank for rank, status in enumerate(statuses) if rank >= len(wanted) or status != wanted[rank])
    said = log.with_suffix(f".{worst}.log").read_text(errors="replace").strip().splitlines()
    return "\n    ".join([f"dgpo {' '.join(arguments)}: ended with {statuses[worst]}", *said[-12:]])


def serve(answers: IO[str]) -> None:
    """Until there are no more requests."""

    def answer(wrong: str | None) -> None:
        answers.write(json.dumps(wrong) + "\n")
        answers.flush()

    first = json.loads(sys.stdin.readline())
    import torch

    for trainer in ("dgpo_core.trainer", "dgpo_core.training.trainer"):  # runs find it imported
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(trainer)
    torch.set_num_threads(1)
    for maker, directory, options in first["checkpoints"]:
        pkgutil.resolve_name(maker)(directory, **options)
    gc.freeze()
    answer(None)
    for line in sys.stdin:
        request = json.loads(line)
        Path(request["log"]).parent.mkdir(parents=True, exist_ok=True)
        wrong = (step(s["arguments"], s["processes"], s["kill"], Path(request["log"])) for s in request["steps"])
        answer(next(filter(None, wrong), None))


if __name__ == "__main__":
    forget_other_trees()
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever libraries say
        serve(answers)
