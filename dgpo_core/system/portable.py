"""What operating systems do differently, in one place: flags, locks, permissions, signals and process groups.

Windows has no `fcntl`, `resource`, process groups or `O_NOFOLLOW`. No other module of the engine and the command line
uses what is missing there (`tests/test_portable.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:
    fcntl = None
    import msvcrt

__all__ = [
    "BINARY",
    "CLOEXEC",
    "CONTINUE",
    "EARLY",
    "HANGUP",
    "KILL",
    "NOCTTY",
    "NOFOLLOW",
    "NONBLOCK",
    "SUSPEND",
    "can_fork",
    "fork",
    "is_read_only",
    "kill_group",
    "lock",
    "new_group",
    "peak_memory",
    "read_at",
    "set_mode",
    "suspend",
    "threads",
    "write_at",
]


def _flag(name: str) -> int:
    return int(getattr(os, name, 0))


CLOEXEC, NOCTTY, NOFOLLOW, NONBLOCK = map(_flag, ("O_CLOEXEC", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK"))
"""Flags of `os.open`, 0 where there are none. On Windows no file is inherited anyway, and a link is followed."""
BINARY = _flag("O_BINARY")
"""Windows changes line ends without it."""
HANGUP, SUSPEND, CONTINUE = (getattr(signal, name, None) for name in ("SIGHUP", "SIGTSTP", "SIGCONT"))
"""Signals of a terminal that closes, of Ctrl-Z and of `fg`; None on Windows."""
EARLY = getattr(signal, "SIGUSR1", None)
"""Signal of a cluster some time before it ends a job; None on Windows."""
KILL: signal.Signals = getattr(signal, "SIGKILL", signal.SIGTERM)
"""Ends a process at once; on Windows SIGTERM does."""
LOCKED_BYTE = 2**30
"""Byte that is locked on Windows, far behind the content, which others may then still read."""


def lock(handle: int, *, shared: bool = False) -> None:
    """Lock an open file until it is closed, or raise BlockingIOError if another process holds the lock.

    shared: lock together with other shared holders; on Windows, where there is no such lock, an exclusive one.
    Raises OSError if the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return
    place = os.lseek(handle, 0, os.SEEK_CUR)
    os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    except PermissionError as error:
        raise BlockingIOError(error.errno, error.strerror) from error
    finally:
        os.lseek(handle, place, os.SEEK_SET)


def read_at(handle: int, size: int, offset: int) -> bytes:
    """Read at most `size` bytes at an offset."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    os.lseek(handle, offset, os.SEEK_SET)
    return os.read(handle, size)


def write_at(handle: int, content: bytes, offset: int) -> None:
    """Write bytes at an offset."""
    if hasattr(os, "pwrite"):
        os.pwrite(handle, content, offset)
        return
    os.lseek(handle, offset, os.SEEK_SET)
    os.write(handle, content)


def set_mode(handle: int, mode: int) -> None:
    """Set the permissions of an open file, where the system has any. Raises OSError."""
    if hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def is_read_only(path: Path) -> bool:
    """Return whether a path is on a read-only file system, as far as is known. Raises OSError."""
    return hasattr(os, "statvfs") and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def new_group() -> dict[str, Any]:
    """Return the keywords of `subprocess.Popen` that keep the terminal's Ctrl-C from a process."""
    if hasattr(os, "killpg"):
        return {"process_group": 0}
    import subprocess

    return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}


def can_fork() -> bool:
    """Return whether processes can be forked and the threads of this one be counted: on Linux. The frameworks of macOS
    do not survive a fork."""
    return sys.platform == "linux" and hasattr(os, "fork") and hasattr(os, "memfd_create") and threads() > 0


def threads() -> int:
    """Return the number of threads of this process, those of libraries included; 0 if it is not known."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


def fork() -> int:
    """Fork a process in a group of its own, and return its id; 0 in the new process. Raises OSError."""
    pid = os.fork()
    with contextlib.suppress(OSError):  # both set it, so that neither has to wait for the other
        os.setpgid(pid, pid)
    return pid


def kill_group(pid: int) -> None:
    """End the process group of a process that was started with `new_group`, if it is still there.

    On Windows only the process itself.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, KILL)
        else:
            os.kill(pid, KILL)


def suspend() -> None:
    """Stop this process until it is continued, where the system can."""
    if hasattr(signal, "SIGSTOP"):
        os.kill(os.getpid(), signal.SIGSTOP)


def peak_memory() -> int:
    """Return the largest number of bytes that the process has had in memory; 0 if it is not known."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in KiB, but in bytes on macOS
    return peak if sys.platform == "darwin" else peak * 1024
