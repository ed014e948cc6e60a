"""Child processes: started, watched together and ended, whatever state they are in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from dgpo_core.system.supervising import Child, culprit, fate, forwarding_signals, wait_for_all

HANGS = "trap '' TERM; echo ready; while :; do sleep 1; done"
"""A shell that SIGTERM does not end."""


def shell(script: str, **options: object) -> Child:
    return Child(["sh", "-c", script], **options)  # type: ignore[arg-type]


def until(condition: object) -> None:
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.strip().startswith("Z")


@contextmanager
def ended(*children: Child) -> Iterator[None]:
    try:
        yield
    finally:
        for child in children:
            child.kill()


def test_environment_directory_and_descriptors_reach_it(tmp_path: Path) -> None:
    hear, say = os.pipe()
    lines: list[str] = []
    script = f'echo "$A:$HOME:$PWD"; echo through > /dev/fd/{say}; cat'
    child = shell(script, environment={"A": "b"}, directory=tmp_path, pass_fds=[say], output=lines.append)
    with ended(child):
        assert child.wait(5) == 0, "standard input is empty"
        until(lambda: lines)
        assert lines == [f"b::{tmp_path}"]
        assert os.read(hear, 100) == b"through\n"
    for end in (hear, say):
        os.close(end)


def test_output_goes_to_a_function_and_the_last_lines_are_kept() -> None:
    lines: list[str] = []
    child = shell(
        "for i in 1 2 3; do echo out $i; done; echo; echo err >&2; printf 'no end'", output=lines.append, kept=3
    )
    with ended(child):
        child.wait(5)
        until(lambda: len(lines) == 6)
    assert lines == ["out 1", "out 2", "out 3", "", "err", "no end"]
    assert child.last_lines(5) == ["err", "no end"], "of the three that are kept one is empty"


def test_output_goes_to_a_file() -> None:
    with tempfile.TemporaryFile() as log:
        child = shell("echo one; echo two >&2", output=log)
        child.wait(5)
        assert child.last_lines(1) == ["two"]
        assert child.last_lines(5) == ["one", "two"]
        assert not log.closed


def test_a_pipe_that_a_grandchild_keeps_open_holds_nobody_up() -> None:
    child = Child(["sh", "-c", "set -m; sleep 60 & echo $!"], output=lambda line: None)
    child.wait(5)
    until(lambda: child.last_lines(1))
    started = time.monotonic()
    child.kill()
    assert time.monotonic() - started < 4
    with suppress(ProcessLookupError):
        os.kill(int(child.last_lines(1)[0]), signal.SIGKILL)


def test_killed_with_its_group_and_again() -> None:
    child = shell("sleep 60 & echo $!; wait", output=lambda line: None)
    until(lambda: child.last_lines(1))
    grandchild = int(child.last_lines(1)[0])
    assert (child.killed, child.poll()) == (False, None)
    assert child.kill() == child.kill() == child.poll() == -signal.SIGKILL
    assert child.killed
    until(lambda: not alive(grandchild))


def test_it_may_end_in_its_own_way() -> None:
    child = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done", output=lambda line: None)
    until(lambda: child.last_lines(1))
    child.terminate()
    assert child.wait(5) == child.kill() == 7


def test_what_is_not_there_and_what_takes_too_long() -> None:
    with pytest.raises(FileNotFoundError):
        Child(["/no/such/program"])
    child = shell("sleep 60")
    with ended(child), pytest.raises(TimeoutError, match="is still running after"):
        child.wait(0.01)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-signal.SIGTERM, "was terminated by SIGTERM"),
        (-signal.SIGKILL, "was terminated by SIGKILL, possibly because the system ran out of memory"),
        (-250, "was terminated by signal 250"),
    ],
)
def test_fate(code: int, words: str) -> None:
    assert fate(code) == words


@pytest.mark.parametrize(
    ("codes", "found"),
    [
        ([0, 0], None),
        ([None, 0], None),
        ([0, 1], 1),
        ([3, 1, 2], 1),
        ([3, 0, 3], 0),
        ([None, 3], 1),
        ([3, None, -9], 2),
    ],
)
def test_culprit(codes: list[int | None], found: int | None) -> None:
    assert culprit(codes, consequences=(3,)) == found


def test_a_code_that_is_no_failure() -> None:
    assert culprit([75, None, 75], harmless=(75,)) is None
    assert culprit([75, 1], harmless=(75,)) == 1


def test_all_are_waited_for() -> None:
    children = [shell("sleep 0.1"), shell("exit 0")]
    assert wait_for_all(children, patience=5, grace=5) is None
    assert [child.poll() for child in children] == [0, 0]


def test_one_that_fails_ends_the_others_after_patience_and_grace() -> None:
    children = [shell("sleep 60"), shell(HANGS, output=lambda line: None), shell("sleep 0.3; exit 5")]
    with ended(*children):
        assert wait_for_all(children, patience=0.1, grace=0.1) == 2
        assert [child.poll() for child in children] == [-signal.SIGTERM, -signal.SIGKILL, 5]


def test_those_that_end_by_themselves_in_time_are_left_alone() -> None:
    children = [shell("sleep 0.3; exit 3"), shell("exit 4")]
    assert wait_for_all(children, patience=30, grace=1, consequences=(3,)) == 1
    assert [child.poll() for child in children] == [3, 4]


def test_signals_are_for_all_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    children = [shell("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", output=lambda line: None)]
    with ended(*children), forwarding_signals(children):
        children.append(shell("sleep 60"))  # they may grow
        until(lambda: children[0].last_lines(1))
        os.kill(os.getpid(), signal.SIGTERM)
        assert [child.wait(5) for child in children] == [9, -signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_child_ends_with_its_parent() -> None:
    """The parent is killed, and can say nothing."""
    child = (
        "import os, sys, time; from dgpo_core.system.supervising import end_with_parent;"
        "end_with_parent(int(sys.argv[1]), lambda: os._exit(0), 0.02); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = (
        "import os, sys, time; from dgpo_core.system.supervising import Child;"
        f"Child([sys.executable, '-c', {child!r}, str(os.getpid())]); time.sleep(60)"
    )
    lines: list[str] = []
    started = Child([sys.executable, "-c", parent], output=lines.append)
    until(lambda: lines)
    os.kill(started.pid, signal.SIGKILL)
    until(lambda: not alive(int(lines[0])))
    started.kill()


def test_importing_needs_the_standard_library_only() -> None:
    code = (
        "import sys; import dgpo_core.system.supervising;"
        "assert not {'torch', 'numpy', 'pydantic', 'typer', 'rich'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
