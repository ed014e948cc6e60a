"""Lock a directory for one process. The operating system releases the lock when the process ends.

`DIRECTORY/.lock` contains the process id and the host name of the last holder. On file systems without locks (some NFS,
Lustre and FUSE file systems) only this line is used: it detects a live process of the same machine, but not one on
another machine, nor two processes that start at the same moment.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from dgpo_core.system.portable import CLOEXEC, NOFOLLOW, NONBLOCK, lock, read_at, write_at
from dgpo_core.system.reading import kind_of

__all__ = ["NAME", "HeldError", "Lock", "holder_alive", "in_use"]

NAME = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks."""


class HeldError(Exception):
    """Another process holds the lock; the message is its process id."""


class Lock:
    """A held lock. reported: a warning if the file system has no locks, else None."""

    def __init__(self, handle: int, reported: str | None) -> None:
        self.reported = reported
        self._handle = handle

    @staticmethod
    def take(directory: Path) -> Lock:
        """Lock a directory. Raises HeldError if another process holds it, and OSError if the lock cannot be used.

        The lock file must not be a link, which would overwrite a file elsewhere.
        """
        handle = _opened(directory / NAME, os.O_RDWR | os.O_CREAT)
        try:
            reported = None
            try:
                lock(handle)
            except BlockingIOError as error:
                raise HeldError(_holder(handle)[0]) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                reported = _without_locks(directory, handle)
            os.ftruncate(handle, 0)
            write_at(handle, f"{os.getpid()} {_machine()}\n".encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        return Lock(handle, reported)

    def release(self) -> None:
        """Release the lock."""
        try:
            if self.reported is not None:
                os.ftruncate(self._handle, 0)
        except OSError:
            pass  # the next process finds that this one has ended
        finally:
            os.close(self._handle)


def in_use(directory: Path) -> bool:
    """Return whether a process holds a directory's lock, as far as is known. Takes a shared lock for a moment."""
    try:
        handle = _opened(directory / NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        lock(handle, shared=True)
    except BlockingIOError:
        return True
    except OSError:
        return _is_alive(*_holder(handle))
    finally:
        os.close(handle)
    return False


def holder_alive(directory: Path) -> bool | None:
    """Return whether the last holder of a directory's lock still runs; None if it is unknown or on another machine.

    Reads the lock file and takes no lock, so that a process that starts at this moment is not refused.
    """
    try:
        handle = _opened(directory / NAME, os.O_RDONLY)
    except OSError:
        return None
    try:
        number, machine = _holder(handle)
    finally:
        os.close(handle)
    return _is_alive(number, machine) if machine == _machine() else None


def _without_locks(directory: Path, handle: int) -> str:
    number, machine = _holder(handle)
    if _is_alive(number, machine):
        raise HeldError(number)
    other = f"; its last user was process {number} on {machine}" if machine not in ("", _machine()) else ""
    return (
        f"the file system of {directory} has no locks: make sure that no other process uses the directory, because "
        f"two would overwrite each other's files{other}"
    )


def _is_alive(number: str, machine: str) -> bool:
    """Return whether this is another, running process of this machine."""
    if machine != _machine() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # a process of another user
        return True
    return True


def _holder(handle: int) -> tuple[str, str]:
    """Return (process id, host name) of the last holder; older versions wrote no host name, which is then empty."""
    words = read_at(handle, 200, 0).decode(errors="replace").split()
    if not words or not words[0].isdecimal() or not words[0].isascii() or int(words[0]) < 1:
        return "unknown", ""
    return words[0], words[1] if len(words) > 1 else ""


def _machine() -> str:
    return "-".join(socket.gethostname().split()) or "unknown"


def _opened(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags | NOFOLLOW | NONBLOCK | CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(errno.ELOOP, f"{path} is a symbolic link; remove it") from error
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"{path} is {kind_of(mode)}, not a file; remove it")
    return handle
