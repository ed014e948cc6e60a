"""Install carried wheels on a bare machine and start again with them. Imports only the standard library."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["OPTION", "SITE", "STARTED", "install", "restarted_with_wheels"]

OPTION = "--wheels"
STARTED, SITE = "DGPO_SESSION_STARTED", "DGPO_SESSION_SITE"
"""Environment variables of the restarted process: when the first one began, and where the wheels are installed."""
ROOT = Path(__file__).parents[2]


def restarted_with_wheels(words: Sequence[str]) -> None:
    """If the words have `--wheels DIRECTORY`, install its wheels and replace this process by one that has them.

    Returns if there is nothing to do: no such option, or this is the process that has them. Exits with code 2 and a
    message if they cannot be installed.
    """
    os.environ.setdefault(STARTED, repr(time.time()))
    directory = _option(words)
    if directory is None or SITE in os.environ:
        return
    site = Path(tempfile.mkdtemp(prefix="dgpo-site-"))
    problem = install(Path(directory), site)
    if problem is not None:
        _end(problem)
    paths = [str(ROOT), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {SITE: str(site), "PYTHONPATH": os.pathsep.join(paths)}
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *words])


def install(directory: Path, site: Path) -> str | None:
    """Install all wheels of a directory into a site directory, without an index; returns what went wrong."""
    wheels = sorted(map(str, directory.glob("*.whl")))
    if not wheels:
        return f"there are no wheels in {directory}; make them with `python -m benchmarks.wheels {directory}`"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile",
               "--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore", "--target", str(site),
               *wheels]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else f"pip cannot install them: {lines[-1] if lines else done.returncode}"


def _option(words: Sequence[str]) -> str | None:
    for i, word in enumerate(words):
        if word == OPTION and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{OPTION}="):
            return word.removeprefix(f"{OPTION}=")
    return None


def _end(problem: str) -> None:
    sys.stderr.write(f"{OPTION}: {problem}\n")
    sys.exit(2)
