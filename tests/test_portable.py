"""Nothing outside `dgpo_core.system.portable` uses what Windows lacks, and runs work without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_remote.commands.serve import serve
from dgpo_remote.worker.workers import connect
from dgpo_schemas.sections.rewards import RewardBlock

ROOT = Path(__file__).parents[1]
PACKAGES = [
    ROOT / "dgpo_core", ROOT / "dgpo_cli", ROOT / "schemas" / "dgpo_schemas",
    *(path for path in sorted(ROOT.glob("plugins/*/src/*")) if path.is_dir() and not path.name.endswith(".egg-info")),
]  # fmt: skip
PORTABLE = ROOT / "dgpo_core" / "system" / "portable.py"
POSIX_ONLY = ("dgpo_remote/server", "dgpo_remote/worker/worker_main.py")
"""Reward services and workers, which say so on Windows (`dgpo_remote.posix`)."""
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
OS = {
    "O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "chroot", "fchmod", "fchown", "fork",
    "forkpty", "getegid", "geteuid", "getgid", "getpgid", "getpgrp", "getsid", "getuid", "killpg", "lchown", "mkfifo",
    "openpty", "pread", "pwrite", "sched_getaffinity", "setpgid", "setsid", "statvfs", "sysconf", "uname", "ST_RDONLY",
}  # fmt: skip
SIGNALS = {
    "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGPROF", "SIGQUIT", "SIGSTOP", "SIGTSTP",
    "SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask", "setitimer",
}  # fmt: skip


def posix_only(path: Path) -> list[str]:
    """Where a module uses what Windows lacks: imports at any depth, attributes of `os` and `signal`."""
    attributes, found = {"os": OS, "signal": SIGNALS}, []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            names = [node.module]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            names = [f"{owner}.{node.attr}"] if node.attr in attributes.get(owner, ()) else []
        found += [f"line {node.lineno}: {name}" for name in names]
    return sorted(found)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_posix_is_in_one_place(package: Path) -> None:
    found = {
        str(path.relative_to(ROOT)): lines
        for path in package.rglob("*.py")
        if path != PORTABLE and not any(part in path.as_posix() for part in POSIX_ONLY)
        if "templates" not in path.parts and (lines := posix_only(path))
    }
    assert found == {}


def test_the_check_sees_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import fcntl\ndef f():\n    import resource\n    os.fchmod(1, 2)\n    signal.SIGKILL\n    os.stat(1)\n"
    )
    assert posix_only(file) == ["line 1: fcntl", "line 3: resource", "line 4: os.fchmod", "line 5: signal.SIGKILL"]


WITHOUT = f"""
import builtins, os, signal, subprocess, tempfile, shutil, asyncio, multiprocessing, sys, types
import torch, torch._dynamo
for name in {sorted(OS)!r}:
    if hasattr(os, name) and name not in ("sysconf", "sched_getaffinity", "uname", "getpid"):
        delattr(os, name)
for name in {sorted(SIGNALS - {"pthread_sigmask", "setitimer", "alarm"})!r}:
    if hasattr(signal, name):
        delattr(signal, name)
real = builtins.__import__

def locking(handle, mode, size):
    import fcntl
    assert (size, os.lseek(handle, 0, os.SEEK_CUR)) == (1, 2**30)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise PermissionError(error.errno, error.strerror) from None

msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, locking
sys.modules["msvcrt"] = msvcrt

def importing(name, globals=None, *rest, **more):
    if name in {MODULES!r} and (globals or {{}}).get("__name__", "").startswith("dgpo"):
        raise ImportError(f"No module named {{name!r}}")
    return real(name, globals, *rest, **more)

builtins.__import__ = importing
"""


def without_posix(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose `os`, `signal` and modules are those of Windows, as seen from this project."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=directory, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_run_trains_resumes_and_is_locked_without_posix(tmp_path: Path) -> None:
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.locking import HeldError, Lock, in_use
from dgpo_core.system import portable
from dgpo_core.system.stopping import stops_a_run
from dgpo_core.system.supervising import Child
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.run import RunConfig

assert portable.fcntl is None and portable.HANGUP is None and portable.EARLY is None and portable.NOFOLLOW == 0
assert [number.name for number in stops_a_run()] == ["SIGINT", "SIGTERM"]
config = RunConfig.model_validate(run_data(Path("runs")))
registry = Registry()
registry.register(plugin, distribution="toy")
for _ in range(2):
    Trainer(config, registry).train(resume="auto", max_iterations=1)
directory = Path(config.run.output) / config.run.name
assert len((directory / "metrics.jsonl").read_text().splitlines()) == 2
lock = Lock.take(directory)
code = '''
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
import fcntl, os
handle = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("held by", os.pread(handle, 100, 0).decode())
'''
seen = subprocess.run([sys.executable, "-c", code, str(directory / ".lock")], capture_output=True, text=True)
assert seen.stdout.startswith(f"held by {{os.getpid()}}"), seen
lock.release()
assert not in_use(directory)
child = Child([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"])
assert child.kill() != 0
assert portable.peak_memory() == 0
print("done")
"""
    done = without_posix(code, tmp_path)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr


def test_the_requirements_name_every_plugin() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    plugins = [line.removeprefix("-e ./") for line in lines if line.startswith("-e ./")]
    assert plugins == sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("plugins/*/pyproject.toml"))


def test_servers_and_workers_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo_remote.posix.os", SimpleNamespace(name="nt"))
    said = "works on Linux and macOS only; on Windows, use WSL or a service on another machine"
    with pytest.raises(UserError, match=rf"^dgpo serve: {said}$"):
        serve(tmp_path / "reward.yaml")
    block = RewardBlock.model_validate({"use": "brightness", "worker": {}})
    with pytest.raises(UserError, match=rf"^rewards\[0\]\.worker: {said}$"):
        connect(block, device=torch.device("cpu"), where="rewards[0]")
