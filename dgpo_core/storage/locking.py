"""One process at a time in a directory: a lock that goes with the process, however that ends.

`DIRECTORY/.lock` holds the number of the last process that held it, and its machine. Where the file system has no locks
(some of NFS, Lustre and FUSE) that line is all there is: it tells of a process of the same machine that still lives,
not of one on another machine, and two that begin in the same moment are not kept apart.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from dgpo_core.system.reading import kind_of

__all__ = ["NAME", "HeldError", "Lock", "in_use"]

NAME = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems without locks say."""


class HeldError(Exception):
    """Another process holds the lock; the message is its number."""


class Lock:
    """A lock that is held. told: what people must know of it, None where locks work."""

    def __init__(self, handle: int, reported: str | None) -> None:
        self.reported = reported
        self._handle = handle

    @staticmethod
    def take(directory: Path) -> Lock:
        """Hold a directory. Raises HeldError if another process does, OSError if its lock cannot be used.

        The file must be one of the directory: a link would have a file elsewhere overwritten.
        """
        handle = _opened(directory / NAME, os.O_RDWR | os.O_CREAT)
        try:
            reported = None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise HeldError(_said(handle)[0]) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                reported = _without_locks(directory, handle)
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {_machine()}\n".encode(), 0)
        except BaseException:
            os.close(handle)
            raise
        return Lock(handle, reported)

    def release(self) -> None:
        """Let others have it."""
        try:
            if self.reported is not None:
                os.ftruncate(self._handle, 0)
        except OSError:
            pass  # the next one sees a process that is gone
        finally:
            os.close(self._handle)


def in_use(directory: Path) -> bool:
    """Whether a process holds a directory's lock, as far as one can tell. It is taken, shared, and let go at once."""
    try:
        handle = _opened(directory / NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return _lives(*_said(handle))
    finally:
        os.close(handle)
    return False


def _without_locks(directory: Path, handle: int) -> str:
    number, machine = _said(handle)
    if _lives(number, machine):
        raise HeldError(number)
    other = f"; the last one that held it was process {number} of {machine}" if machine not in ("", _machine()) else ""
    return (
        f"the file system of {directory} has no locks: make sure that no other process works there, for two "
        f"would spoil each other's files{other}"
    )


def _lives(number: str, machine: str) -> bool:
    """Whether it is another process of this machine that there still is."""
    if machine != _machine() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _said(handle: int) -> tuple[str, str]:
    """(number, machine) of the last holder; the machine is empty where older versions wrote it."""
    words = os.pread(handle, 200, 0).decode(errors="replace").split()
    if not words or not words[0].isdecimal() or not words[0].isascii() or int(words[0]) < 1:
        return "unknown", ""
    return words[0], words[1] if len(words) > 1 else ""


def _machine() -> str:
    return "-".join(socket.gethostname().split()) or "unknown"


def _opened(path: Path, flags: int) -> int:
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise OSError(errno.ELOOP, f"{path} is a symbolic link; remove it") from error
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise OSError(errno.EINVAL, f"{path} is {kind_of(mode)}, not a file; remove it")
    return handle
