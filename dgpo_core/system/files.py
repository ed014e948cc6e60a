"""Writing files so that a crash leaves the old or the new one, never half of one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.system.reading import LARGEST_LOG, kind_of, open_file, read_file, split_lines, why
from dgpo_schemas.manifest import FileEntry
from dgpo_schemas.text import lone_surrogate

__all__ = [
    "append_json",
    "clear",
    "file_entry",
    "fsync_directory",
    "is_stream",
    "keep_json_lines",
    "new_directory",
    "open_to_append",
    "read_json_lines",
    "recover",
    "remove_directory",
    "why_not_writable",
    "write_bytes",
    "write_text",
]

log = logging.getLogger(__name__)

UNABLE = {
    errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR,
}  # fmt: skip
"""What file systems that cannot flush a directory say (SMB, some of FUSE): they keep names in order by themselves."""


def why_not_writable(path: Path) -> str | None:
    """Why a directory cannot be made at `path`, or files in it if it is there; None if nothing is known against it.

    Writes nothing, so it can be asked long before there is anything to write.
    """
    try:
        there = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
        if not there.exists():
            return f"{there} is a symbolic link that leads nowhere"
        if not there.is_dir():
            return f"{there} is {kind_of(there.stat().st_mode)}"
        if os.access(there, os.W_OK | os.X_OK):
            return None
        read_only = os.statvfs(there).f_flag & os.ST_RDONLY
    except (OSError, RuntimeError) as error:
        return why(error)
    return f"{there} is on a read-only file system" if read_only else f"no permission to write in {there}"


def fsync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable, where its file system can do so. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in UNABLE:
            raise


def _fsync_file(path: Path, granted: int) -> None:
    with path.open("rb") as handle:
        mode = stat.S_IMODE(os.fstat(handle.fileno()).st_mode)
        if mode | granted != mode:
            with contextlib.suppress(OSError):  # a file system that has no permissions
                os.fchmod(handle.fileno(), mode | granted)
        os.fsync(handle.fileno())


def clear(path: Path) -> None:
    """Take away whatever is called so: a directory with all that is in it, a file; of a symbolic link the link alone.
    Raises OSError; nothing there is no error."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _clear_if_possible(path: Path) -> None:
    with contextlib.suppress(OSError):
        clear(path)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears under its name only when it is complete and on disk; an old one is replaced.

    Raises UserError when the disk is full or not writable; nothing that was there before is touched then. After a
    crash `recover` tidies up.
    """
    named = path
    try:
        path = _replaceable(path)
    except (OSError, RuntimeError) as error:  # links that lead to each other
        raise UserError(f"cannot write {named}: {why(error)}") from error
    aside, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    try:
        clear(aside)
        aside.mkdir(parents=True)
        yield aside
        granted = os.stat(aside).st_mode & 0o666  # what the umask leaves; libraries make files for their owner alone
        for file in aside.rglob("*"):
            if file.is_file():
                _fsync_file(file, granted)
        fsync_directory(aside)
        _make_room(path, old)
        aside.rename(path)
        fsync_directory(path.parent)
        _clear_if_possible(old)
    except BaseException as error:
        if old.is_dir() and not os.path.lexists(path):
            old.rename(path)
        _clear_if_possible(aside)
        if isinstance(error, OSError):
            raise UserError(f"cannot write {named}: {why(error)}") from error
        raise


def _replaceable(path: Path) -> Path:
    """Where a directory is replaced: of a link to one, what it leads to; a link to anything else is replaced itself."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _make_room(path: Path, old: Path) -> None:
    """Set a directory that is there aside. What else is called so is kept under another name: it is not ours."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        clear(old)
        path.rename(old)
    elif path.exists():
        kept = path.with_name(f"{path.name}.before")
        if os.path.lexists(kept):
            raise FileExistsError(errno.EEXIST, f"is {kind_of(path.lstat().st_mode)}, not a directory")
        path.rename(kept)
        log.warning("%s was %s, and is called %s now", path, kind_of(kept.lstat().st_mode), kept.name)


def remove_directory(path: Path) -> None:
    """Delete a directory so that a crash leaves all of it or nothing under its name; of a link to one, the link.
    Raises UserError if it cannot."""
    gone = path.with_name(f".{path.name}.gone")
    try:
        _clear_if_possible(gone)
        path.rename(gone)
        clear(gone)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {why(error)}") from error


def recover(directory: Path) -> None:
    """Tidy up what a crash left in a directory whose members `new_directory` and `remove_directory` manage.

    What was half written or half deleted goes; what was to be replaced comes back unless its successor is there.
    Raises OSError.
    """
    for old in directory.glob(".*.old"):
        path = directory / old.name.removeprefix(".").removesuffix(".old")
        if not path.exists() and not old.is_symlink():
            old.rename(path)
    for suffix in ("old", "writing", "gone"):
        for left in directory.glob(f".*.{suffix}"):
            _clear_if_possible(left)


def file_entry(path: Path, size: int | None = None) -> FileEntry:
    """Digest and length of a file, or of its first `size` bytes; of nothing if it is not there. Raises OSError."""
    sha, left, read = hashlib.sha256(), size, 0
    try:
        handle = open_file(path, most=2**63)
    except FileNotFoundError:
        return FileEntry(sha256=sha.hexdigest(), bytes=0)
    with handle:
        if size is None:
            sha = hashlib.file_digest(handle, "sha256")
            read = handle.tell()
        while left:
            block = handle.read(min(left, 1 << 20))
            if not block:
                break
            sha.update(block)
            left, read = left - len(block), read + len(block)
    return FileEntry(sha256=sha.hexdigest(), bytes=read)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, UTF-8: aside, flushed to disk, renamed. Raises UserError like `write_bytes`."""
    found = lone_surrogate(text)
    if found is not None:
        raise UserError(
            f"cannot write {path}: {text[max(0, found - 40) : found + 1]!a} ends with half of a character, which no "
            "file of text can hold"
        )
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same with bytes.

    A file that is there keeps its permissions; a new one has those of the umask. A symbolic link is replaced, not
    followed, so that nothing elsewhere is overwritten; a device and a FIFO that is read from (/dev/stdout) are written
    to. Raises UserError.
    """
    try:
        mode = _mode_of(path)
        if is_stream(path):
            _write_into(path, content)
        elif mode is not None and (stat.S_ISBLK(mode) or stat.S_ISSOCK(mode)):
            raise OSError(errno.EINVAL, f"is {kind_of(mode)}, not a file")
        else:
            _write_aside(path, content, mode)
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}") from error


def _mode_of(path: Path) -> int | None:
    """Of what is there, links followed; None where nothing is, or where a link leads nowhere or in circles."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def is_stream(path: Path) -> bool:
    """Whether a path is one to write into, not a file to replace: a device, a FIFO, and /dev/stdout and /dev/fd/1
    wherever they lead."""
    try:
        mode = _mode_of(path)
    except OSError:
        return False
    if mode is None or stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return mode is not None
    for _ in range(40):
        if path.parent.as_posix() in ("/dev", "/dev/fd") or path.absolute().parts[1:2] == ("proc",):
            return stat.S_ISREG(mode)
        if not path.is_symlink():
            return False
        path = path.parent / path.readlink()
    return False


def _write_into(path: Path, content: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "is a FIFO that nobody reads") from error
        raise
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _write_aside(path: Path, content: bytes, mode: int | None) -> None:
    aside = path.with_name(f".{path.name}.writing")
    handle = _made(aside)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None and stat.S_ISREG(mode):
                with contextlib.suppress(OSError):  # a file system that has no permissions
                    os.fchmod(handle, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(handle)
            mine = os.fstat(handle)
        if not os.path.samestat(mine, os.lstat(aside)):
            raise OSError(errno.EBUSY, "another process writes it too")
        os.replace(aside, path)
    except OSError:
        _clear_if_possible(aside)
        raise


def _made(aside: Path) -> int:
    """A new file to write to. What is called so was left by a crash, or put there so that a link is followed."""
    for _ in range(3):
        clear(aside)
        with contextlib.suppress(FileExistsError):
            return os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    raise OSError(errno.EBUSY, "another process writes it too")


def append_json(path: Path, *records: dict[str, Any]) -> None:
    """Append JSON lines, in one write, and flush them to disk: what is written after them never tells of more.

    A log may be a symbolic link to a file elsewhere, which must be there; it is never made through a link. Raises
    UserError.
    """
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
    try:
        with os.fdopen(open_to_append(path), "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}") from error


def open_to_append(path: Path) -> int:
    """A file's descriptor, to add to a log, which may be a symbolic link to a file that is there. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    if path.is_symlink():
        if not path.exists():
            raise OSError(errno.ENOENT, "is a symbolic link that leads nowhere")
    else:
        flags |= os.O_CREAT | os.O_NOFOLLOW
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a directory says so when it is opened
        raise OSError(errno.EINVAL, f"is {kind_of(mode)}, not a file")
    return os.open(path, flags, 0o666)


def read_json_lines(
    path: Path, needed: Mapping[str, tuple[type, ...]]
) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """`reading.split_lines` of a log; nothing if it is not there. Raises UserError for one that cannot be read."""
    try:
        return split_lines(read_file(path, LARGEST_LOG), needed)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def keep_json_lines(path: Path, iteration: int, needed: Mapping[str, tuple[type, ...]] = MappingProxyType({})) -> None:
    """Drop records after an iteration, and a last line that a crash cut off; a resumed run writes them again.

    Lines that a disk has damaged cannot be written again: they are dropped too, and named in the log. Of a log that is
    a symbolic link the file it leads to is rewritten.
    """
    if not path.exists():
        return
    sound, broken = read_json_lines(path, needed)
    if broken:
        log.warning("%s: damaged, left out: line %s", path, ", ".join(map(str, broken)))
    kept = "".join(f"{line}\n" for line, record in sound if record["iteration"] <= iteration)
    write_bytes(path.resolve() if path.is_symlink() else path, kept.encode())
