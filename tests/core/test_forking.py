"""Processes forked from a server: like fresh ones, apart from what is imported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.system.forking import Forked, ForkServer, NotForked, ServerLost, can_fork
from tests.core.test_supervising import alive, until

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux only")

SERVER = """
import importlib, sys
from dgpo_core.system.forking import serve, why_not_forkable

def imported(names):
    for name in names:
        importlib.import_module(name)
    return why_not_forkable()

job = serve(int(sys.argv[1]), imported)
if job is not None:
    with job.running():
        exec(job.arguments[0])
"""
"""Its processes run code."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "HERE": "yes", "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}


@pytest.fixture
def server(environment: dict[str, str]) -> Iterator[ForkServer]:
    with ForkServer([sys.executable, "-c", SERVER], environment=environment) as server:
        yield server


def fork(server: ForkServer, code: str, log: Path) -> Forked:
    with log.open("ab") as output:
        return server.start([code], output=output)


def said(server: ForkServer, code: str, log: Path) -> Any:
    """What a process says that prints JSON."""
    log.unlink(missing_ok=True)
    assert fork(server, code, log).wait(30) == 0, log.read_text()
    return json.loads(log.read_text())


class Pressed:
    """A socket for which Ctrl-C is pressed while an answer is waited for."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    def __getattr__(self, name: str) -> Any:
        return getattr(self.socket, name)

    def recv(self, size: int) -> bytes:
        raise KeyboardInterrupt


STATE = """
import json, os, resource, signal, socket, stat, sys, threading, warnings
handlers = {n.name: str(signal.getsignal(n)) for n in signal.valid_signals() if isinstance(n, signal.Signals)}
files = sorted(int(n) for n in os.listdir("/proc/self/fd"))
kinds = [stat.S_IFMT(os.fstat(n).st_mode) for n in files if os.path.exists(f"/proc/self/fd/{n}")]
print(json.dumps({
    "group": os.getpgid(0) == os.getpid(), "handlers": handlers, "cwd": os.getcwd(), "input": sys.stdin.read(),
    "threads": len(os.listdir("/proc/self/task")), "python": [t.name for t in threading.enumerate()],
    "sockets": kinds.count(stat.S_IFSOCK), "environment": dict(os.environ), "filters": list(map(str, warnings.filters)),
    "tty": sys.stdout.isatty(), "mask": [str(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "leaking": [n for n in files if n > 2 and os.path.exists(f"/proc/self/fd/{n}") and os.get_inheritable(n)],
    "encoding": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stderr.line_buffering],
    "limits": [resource.getrlimit(n) for n in range(5)], "nice": os.nice(0), "path": sys.path[1:],
}))
"""


def test_its_state_is_that_of_a_fresh_process(server: ForkServer, environment: dict[str, str], tmp_path: Path) -> None:
    """Also of one that is forked after others, from a server that has imported something."""
    said(server, "import numpy, logging.handlers, multiprocessing; print(1)", tmp_path / "log")
    found = said(server, STATE, tmp_path / "log")
    with (tmp_path / "fresh").open("ab") as output:
        subprocess.run(
            [sys.executable, "-c", f"import numpy, logging.handlers, multiprocessing\n{STATE}"],
            env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True, process_group=0,
        )  # fmt: skip
    fresh = json.loads((tmp_path / "fresh").read_text())
    if "OMP_NUM_THREADS" not in os.environ:  # numpy's OpenBLAS starts its threads again when it needs them
        fresh["threads"] = 1
    assert found == fresh
    assert (found["group"], found["input"], found["threads"], found["sockets"]) == (True, "", 1, 0)


def test_what_one_has_imported_the_next_finds_imported(server: ForkServer, tmp_path: Path) -> None:
    """Among them a module that has imported others, and none that only the first one could make."""
    (tmp_path / "mine.py").write_text("import colorsys, os\npid = os.getpid()\n")
    code = (
        "import json, sys, types; before = [n in sys.modules for n in ('mine', 'colorsys', 'made')]\n"
        "import mine; sys.modules['made'] = types.ModuleType('made'); print(json.dumps([before, mine.pid]))"
    )
    log = tmp_path / "log"
    first, second, third = (said(server, code, log) for _ in range(3))
    assert first[0] == [False, False, False]
    assert second == third == [[True, True, False], server.pid]
    assert first[1] != server.pid


def test_random_states_are_not_shared(server: ForkServer, tmp_path: Path) -> None:
    code = (
        "import json, numpy, os, random, tempfile, uuid\n"
        "print(json.dumps([random.random(), numpy.random.rand(), str(uuid.uuid4()), tempfile.mktemp()]))"
    )
    drawn = [said(server, code, tmp_path / "log") for _ in range(4)]
    assert all(len(set(values)) == 4 for values in zip(*drawn, strict=True))


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("raise SystemExit(3)", 3),
        ("1 / 0", 1),
        ("import os; os._exit(7)", 7),
        ("import atexit; atexit.register(print, 'bye')", 0),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    ],
)
def test_how_it_ended_is_known(server: ForkServer, tmp_path: Path, code: str, ends: int) -> None:
    process = fork(server, code, tmp_path / "log")
    assert process.wait(30) == process.poll() == process.kill() == ends
    assert not process.lost
    process.terminate()  # nothing is there any more
    text = (tmp_path / "log").read_text()
    assert ("ZeroDivisionError" in text) == ("1 / 0" in code)
    assert ("bye" in text) == ("atexit" in code)


def test_it_ends_as_a_fresh_process_does(server: ForkServer, tmp_path: Path) -> None:
    """Threads are waited for, functions registered at exit are called, and open files written."""
    code = (
        "import atexit, logging, logging.handlers, tempfile, threading, time\n"
        f"file = open({str(tmp_path / 'left open')!r}, 'w'); file.write('written')\n"
        "binary = open({0!r}, 'wb'); binary.write(b'bytes')\n"
        "kept = logging.handlers.MemoryHandler(9, target=logging.FileHandler({1!r}))\n"
        "logging.getLogger().addHandler(kept); logging.getLogger().warning('logged')\n"
        "atexit.register(print, 'at exit'); aside = tempfile.TemporaryDirectory(); print(aside.name)\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start(); raise SystemExit('message')"
    ).format(str(tmp_path / "binary"), str(tmp_path / "messages"))
    log = tmp_path / "log"
    for _ in range(2):
        log.unlink(missing_ok=True)
        assert fork(server, code, log).wait(30) == 1
        aside, *said = log.read_text().splitlines()
        assert sorted(said) == ["at exit", "message", "thread"]
        assert not Path(aside).exists()
        for name, content in (("left open", "written"), ("binary", "bytes"), ("messages", "logged\n")):
            assert (tmp_path / name).read_text() == content
            (tmp_path / name).unlink()


def test_signals_reach_it_alone_and_a_kill_its_group(server: ForkServer, tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, time\n"
        "signal.signal(15, lambda *a: print('saving', flush=True))\n"
        "other = subprocess.Popen(['sleep', '60']); print(other.pid, flush=True); time.sleep(60); time.sleep(60)"
    )
    log = tmp_path / "log"
    process = fork(server, code, log)
    until(lambda: log.read_text())
    other = int(log.read_text())
    process.terminate()
    until(lambda: "saving" in log.read_text())
    assert process.poll() is None
    with pytest.raises(TimeoutError):
        process.wait(0.1)
    assert alive(other)
    assert process.kill() == -signal.SIGKILL
    until(lambda: not alive(other))


def test_threads_in_the_server_end_its_forks(server: ForkServer, tmp_path: Path) -> None:
    """The first process starts before anything is imported; from then on none does."""
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n"
    (tmp_path / "threaded.py").write_text(thread)
    log = tmp_path / "log"
    assert said(server, "import threaded; print(1)", log) == 1
    for _ in range(2):
        with pytest.raises(NotForked, match="2 threads run"):
            fork(server, "print(1)", log)


def test_a_lost_server(server: ForkServer, tmp_path: Path) -> None:
    """Its processes notice, as children do of their parent; that they have ended is known, but not how."""
    log = tmp_path / "log"
    process = fork(server, "print(1, flush=True); import time; time.sleep(1)", log)
    until(lambda: log.exists() and log.read_text())
    os.kill(server.pid, signal.SIGKILL)
    with pytest.raises(ServerLost):
        fork(server, "print(2)", log)
    assert process.poll() is None
    assert (process.wait(30), process.lost) == (-signal.SIGTERM, True)
    assert not alive(process.pid)


def test_an_answer_that_nobody_waited_for_is_not_that_of_the_next_request(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the server imports."""
    log = tmp_path / "log"
    process = fork(server, "raise SystemExit(5)", log)
    until(lambda: not alive(process.pid))

    whole = server._socket
    monkeypatch.setattr(server, "_socket", Pressed(whole))
    with pytest.raises(KeyboardInterrupt):
        fork(server, "print(1)", log)
    monkeypatch.setattr(server, "_socket", whole)
    assert process.poll() == 5


def test_a_lost_answer_is_given_again(server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How a process ended is known after Ctrl-C while its server told it; of others, nothing is."""
    process = fork(server, "raise SystemExit(5)", tmp_path / "log")
    until(lambda: not alive(process.pid))
    whole = server._socket
    monkeypatch.setattr(server, "_socket", Pressed(whole))
    with pytest.raises(KeyboardInterrupt):
        process.poll()
    monkeypatch.setattr(server, "_socket", whole)
    assert process.poll() == 5
    assert server.ask({"poll": os.getpid()})["code"] is None


def test_a_system_that_refuses_is_told_of(environment: dict[str, str], tmp_path: Path) -> None:
    """Such as at the limit of processes. The server stays."""
    refuses = (
        "from dgpo_core.system import forking\n"
        "def refuse(): raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "forking.fork = refuse\n"
    )
    with ForkServer([sys.executable, "-c", refuses + SERVER], environment=environment) as server:
        for _ in range(2):
            with pytest.raises(NotForked, match=r"cannot fork: .*Resource temporarily unavailable"):
                fork(server, "print(1)", tmp_path / "log")


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from dgpo_core.system.forking import ForkServer\n"
        f"server = ForkServer([sys.executable, '-c', {SERVER!r}], environment=dict(os.environ))\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(0.1)
        assert alive(pid)
        process.kill()
        until(lambda: not alive(pid))
