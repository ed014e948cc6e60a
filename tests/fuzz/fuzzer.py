"""Gives corrupted things to the program: each is accepted, or refused with a message that says where; nothing else.

A subject makes case after case: documents for the command line, run directories, or requests to a service.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import dgpo_core.plugins.registry as registry_module
from dgpo_cli.main import main
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin

__all__ = ["GOOD", "ROOT", "Case", "Findings", "Subject", "asked", "run", "toy_installed", "workplace"]

ROOT = Path(__file__).parents[2]
GOOD = ("accepted", "refused")
LONGEST = 20
"""Seconds after which a case counts as hanging."""


@dataclass(frozen=True)
class Case:
    """What was done, of which kind, and what came of it: one of GOOD, or what is wrong."""

    kind: str
    done: str
    outcome: str
    said: str
    shown: str


@dataclass
class Findings:
    """What came out: cases by kind and outcome, and the cases that nobody may see."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A subject of fuzzing: opened once, it gives a function from a case's random numbers to the case."""

    name: str
    opened: Callable[[], AbstractContextManager[Callable[[random.Random], Case]]]


class Hangs(BaseException):
    """A case that takes too long; no handler of ours may take it for an error of its own."""


def run(subject: Subject, cases: int, seed: int) -> Iterator[Findings]:
    """Case after case; the same findings object, grown, after each."""
    findings = Findings()
    with subject.opened() as make:
        for number in range(cases):
            case = make(random.Random(f"{seed} {number}"))
            findings.counts[case.kind, case.outcome if case.outcome in GOOD else "failed"] += 1
            if case.outcome not in GOOD:
                findings.failures.append(
                    f"case {number} of seed {seed}, {case.kind}, {case.done}: {case.outcome}\n{case.said}\n"
                    f"--- {case.shown[:5000]}"
                )
            yield findings


# -- the command line -------------------------------------------------------------------------------------------------


@contextmanager
def workplace() -> Iterator[Path]:
    """An empty working directory that has what the project's documents refer to."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for name in ("examples", "experiments", "plugins"):
            (Path(directory) / name).symlink_to(ROOT / name)
        try:
            yield Path(directory)
        finally:
            os.chdir(before)


@contextmanager
def toy_installed() -> Iterator[Registry]:
    """The toy's parts beside those of the installed plugins."""
    installed, known = registry_module.get_registry, Registry()
    known.register(plugin, distribution="toy")
    registry_module.get_registry = lambda: known  # type: ignore[assignment]
    try:
        yield known
    finally:
        registry_module.get_registry = installed


def asked(
    command: list[str], place: re.Pattern[str], meanings: Mapping[int, str] = {0: "accepted", 2: "refused"}
) -> tuple[str, str]:
    """(accepted, refused, or what is wrong; what was said) of a command line in this process.

    place: what a refusal must say; meanings: the exit codes that may be.
    """
    out = io.StringIO()
    status: object = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), time_limit():
            main(command)
    except SystemExit as end:
        status = end.code
    except Hangs:
        return f"hangs for more than {LONGEST} s", out.getvalue()
    except BaseException:
        return "a traceback", out.getvalue() + traceback.format_exc()
    said = out.getvalue()
    if "Traceback" in said:
        return "a traceback", said
    outcome = meanings.get(status if isinstance(status, int) else 0)
    if outcome is None:
        return f"exit code {status}", said
    if len(said) > 20_000:
        return f"a message of {len(said)} characters", said[:5000]
    if outcome == "refused" and not said.strip():
        return "refused without a word", said
    if outcome == "refused" and not place.search(said):
        return "the message does not say where", said
    return outcome, said


@contextmanager
def time_limit(seconds: int = LONGEST) -> Iterator[None]:
    """Raises Hangs in this thread."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hangs

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
