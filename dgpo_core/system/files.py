"""Write files atomically: after a crash, either the old or the new version is there, never a part of one."""

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
from dgpo_core.system.portable import BINARY, CLOEXEC, NOCTTY, NOFOLLOW, NONBLOCK, is_read_only, set_mode
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
"""Errors of file systems that cannot flush a directory (SMB, some FUSE file systems), which order names themselves."""


def why_not_writable(path: Path) -> str | None:
    """Return why the directory `path` cannot be created or written to, or None if no reason is known.

    Writes nothing, so it can be called long before the first write.
    """
    try:
        found = next(place for place in (path.absolute(), *path.absolute().parents) if os.path.lexists(place))
        if not found.exists():
            return f"{found} is a broken symbolic link"
        if not found.is_dir():
            return f"{found} is {kind_of(found.stat().st_mode)}"
        if os.access(found, os.W_OK | os.X_OK):
            return None
        read_only = is_read_only(found)
    except (OSError, RuntimeError) as error:
        return why(error)
    return f"{found} is on a read-only file system" if read_only else f"no permission to write in {found}"


def fsync_directory(path: Path) -> None:
    """Flush renames and new names in a directory to disk, if its file system supports it. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | CLOEXEC)
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
            with contextlib.suppress(OSError):  # a file system without permissions
                set_mode(handle.fileno(), mode | granted)
        os.fsync(handle.fileno())


def clear(path: Path) -> None:
    """Delete a directory tree or a file; of a symbolic link, only the link. Does nothing if the path does not exist.

    Raises OSError.
    """
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
    """Create or replace a directory atomically: yields a temporary directory, renamed to `path` once it is on disk.

    Raises UserError if the disk is full or not writable; an existing directory is then untouched. After a crash,
    `recover` cleans up.
    """
    requested = path
    try:
        path = _replaceable(path)
    except (OSError, RuntimeError) as error:  # a loop of symbolic links
        raise UserError(f"cannot write {requested}: {why(error)}") from error
    aside, old = path.with_name(f".{path.name}.writing"), path.with_name(f".{path.name}.old")
    try:
        clear(aside)
        aside.mkdir(parents=True)
        yield aside
        granted = os.stat(aside).st_mode & 0o666  # by the umask; some libraries create files for their owner only
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
            raise UserError(f"cannot write {requested}: {why(error)}") from error
        raise


def _replaceable(path: Path) -> Path:
    """Return the path to replace: the target of a link to a directory; any other link itself."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def _make_room(path: Path, old: Path) -> None:
    """Move an existing directory to `old`. Rename a file of that name instead of deleting it: it is not dgpo's."""
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
        log.warning("%s was %s; renamed it to %s", path, kind_of(kept.lstat().st_mode), kept.name)


def remove_directory(path: Path) -> None:
    """Delete a directory atomically; of a link to a directory, only the link. Raises UserError."""
    gone = path.with_name(f".{path.name}.gone")
    try:
        _clear_if_possible(gone)
        path.rename(gone)
        clear(gone)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {why(error)}") from error


def recover(directory: Path) -> None:
    """Clean up after a crash in a directory whose members `new_directory` and `remove_directory` manage.

    Deletes partly written and partly deleted directories. Restores a directory that was being replaced if the new one
    does not exist. Raises OSError.
    """
    for old in directory.glob(".*.old"):
        path = directory / old.name.removeprefix(".").removesuffix(".old")
        if not path.exists() and not old.is_symlink():
            old.rename(path)
    for suffix in ("old", "writing", "gone"):
        for left in directory.glob(f".*.{suffix}"):
            _clear_if_possible(left)


def file_entry(path: Path, size: int | None = None) -> FileEntry:
    """Return SHA-256 and length of a file, or of its first `size` bytes. A missing file counts as empty.

    Raises OSError.
    """
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
    """Write a UTF-8 text file atomically: to a temporary file, flushed to disk, renamed. Raises UserError."""
    found = lone_surrogate(text)
    if found is not None:
        raise UserError(
            f"cannot write {path}: {text[max(0, found - 40) : found + 1]!a} ends with half of a character, which "
            "cannot be encoded as UTF-8"
        )
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file, flushed to disk, renamed.

    An existing file keeps its permissions; a new one has those of the umask. Replaces a symbolic link instead of
    following it, so that no file elsewhere is overwritten. Writes directly to a device and to a FIFO with a reader
    (/dev/stdout). Raises UserError.
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
    """Return the mode of a file, following links; None if there is none, or for a broken link or a loop of links."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            return None
        raise


def is_stream(path: Path) -> bool:
    """Return whether to write into a path instead of replacing it: a device, a FIFO, or a link from /dev/stdout or
    /dev/fd/1 to a file."""
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
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | NONBLOCK | CLOEXEC | NOCTTY | BINARY)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "is a FIFO without a reader") from error
        raise
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _write_aside(path: Path, content: bytes, mode: int | None) -> None:
    aside = path.with_name(f".{path.name}.writing")
    handle = _open_new(aside)
    try:
        with os.fdopen(handle, "wb") as file:
            if mode is not None and stat.S_ISREG(mode):
                with contextlib.suppress(OSError):  # a file system without permissions
                    set_mode(handle, stat.S_IMODE(mode))
            file.write(content)
            file.flush()
            os.fsync(handle)
            written = os.fstat(handle)
        if not os.path.samestat(written, os.lstat(aside)):
            raise OSError(errno.EBUSY, "another process is writing it")
        os.replace(aside, path)
    except OSError:
        _clear_if_possible(aside)
        raise


def _open_new(aside: Path) -> int:
    """Open a new file for writing. Deletes what exists: remains of a crash, or a link planted to be followed."""
    for _ in range(3):
        clear(aside)
        with contextlib.suppress(FileExistsError):
            return os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | CLOEXEC | BINARY, 0o666)
    raise OSError(errno.EBUSY, "another process is writing it")


def append_json(path: Path, *records: dict[str, Any]) -> None:
    """Append JSON lines in one write and flush them to disk, so that files written later never refer to missing lines.

    A log may be a symbolic link to an existing file elsewhere; no file is created through a link. Raises UserError.
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
    """Open a log for appending and return its file descriptor; a symbolic link must lead to an existing file.

    Raises OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | CLOEXEC | NONBLOCK | BINARY
    if path.is_symlink():
        if not path.exists():
            raise OSError(errno.ENOENT, "is a broken symbolic link")
    else:
        flags |= os.O_CREAT | NOFOLLOW
    mode = _mode_of(path)
    if mode is not None and not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a directory raises by itself
        raise OSError(errno.EINVAL, f"is {kind_of(mode)}, not a file")
    return os.open(path, flags, 0o666)


def read_json_lines(
    path: Path, needed: Mapping[str, tuple[type, ...]]
) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """Read a log with `reading.split_lines`. A missing log counts as empty. Raises UserError if it cannot be read."""
    try:
        return split_lines(read_file(path, LARGEST_LOG), needed)
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise UserError(f"cannot read {path}: {why(error)}") from error


def keep_json_lines(path: Path, iteration: int, needed: Mapping[str, tuple[type, ...]] = MappingProxyType({})) -> None:
    """Drop records after an iteration, and an incomplete last line; a resumed run writes them again.

    Also drops damaged lines, which cannot be restored, and logs a warning with their numbers. If the log is a symbolic
    link, rewrites its target.
    """
    if not path.exists():
        return
    sound, broken = read_json_lines(path, needed)
    if broken:
        log.warning("%s: dropped damaged lines: %s", path, ", ".join(map(str, broken)))
    kept = "".join(f"{line}\n" for line, record in sound if record["iteration"] <= iteration)
    write_bytes(path.resolve() if path.is_symlink() else path, kept.encode())
