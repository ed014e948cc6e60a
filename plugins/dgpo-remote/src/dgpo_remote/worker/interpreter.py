"""Diagnosis of an interpreter that cannot run a worker. Used only after a failure."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["why_it_did_not_greet", "why_it_did_not_start"]

PATIENCE = 20.0
PROBE = """
import importlib.util, json, sys
sys.path = [path for path in sys.path if path]
dgpo, worker = (bool(importlib.util.find_spec(name)) for name in ("dgpo_core", "dgpo_remote"))
print(json.dumps({"python": list(sys.version_info[:2]), "dgpo": dgpo, "worker": worker}))
"""
OLDEST = [3, 11]


def why_it_did_not_start(python: str, error: Exception) -> str:
    """Return why the interpreter could not be started, from the error of starting it."""
    number = getattr(error, "errno", None)
    if os.path.isdir(python):
        return f"{python} is a directory; name the interpreter in it, such as {os.path.join(python, 'bin', 'python')}"
    if number == errno.ENOENT:
        return f"no such interpreter: {python}; name one that has dgpo and the reward's plugin installed"
    if number == errno.EACCES:
        return f"{python} is not executable; name a Python interpreter"
    if number == errno.ENOEXEC:
        return f"{python} is not a program; name a Python interpreter"
    return f"{python} cannot be started: {error}"


def why_it_did_not_greet(
    python: str, variables: Mapping[str, str], lines: Sequence[str], waited: float | None = None
) -> str:
    """Return why a program that started did not become a worker, after probing it.

    lines: its output; waited: seconds of worker.start_timeout, if it timed out.
    """
    output = [line for line in lines if line.strip()]
    last = f": {output[-1]}" if output else ""
    try:
        done = subprocess.run(
            [python, "-c", PROBE], capture_output=True, text=True, timeout=PATIENCE, env=dict(variables), check=False,
            stdin=subprocess.DEVNULL, errors="replace",
        )  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        version, has_dgpo, has_worker = found["python"], found["dgpo"], found["worker"]
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError, KeyError, TypeError):
        return f"{python} is not a Python interpreter{last}"
    if version < OLDEST:
        return f"{python} is Python {version[0]}.{version[1]}; workers require Python 3.11 or newer with dgpo installed"
    if not has_dgpo:
        return (
            f"{python} lacks dgpo; install it and the reward's plugin there, in a checkout of dgpo: "
            f"{python} -m pip install -e . -e plugins/dgpo-remote ..."
        )
    if not has_worker:
        return (
            f"{python} lacks dgpo-remote; install the run's version there, in a checkout of dgpo: "
            f"{python} -m pip install -e plugins/dgpo-remote"
        )
    late = "" if waited is None else f" within {waited:g} s (worker.start_timeout)"
    return f"the worker in {python} did not start{late}{last}"
