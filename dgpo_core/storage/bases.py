"""Digests of a base model's files that are taken in a moment, to notice that a run goes on from another base.

Reading 20 GB takes a minute, so of a safetensors file above 32 MiB the header and 12 KiB of each tensor are digested:
its first, its middle and its last 4 KiB. Another model, another fine-tuning, another precision or quantization, a
scaled, swapped, renamed or reshaped tensor is seen. What changes fewer than all of a tensor's values, and none of those
12 KiB, is not: a flipped bit somewhere, an edited row of a large embedding. Every other file is read whole.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dgpo_core.errors import UserError
from dgpo_core.system.headers import read_header
from dgpo_schemas.origin import BaseFile, BaseRecord

__all__ = ["base_record", "differences", "file_record"]

BLOCK = 4096
WHOLE = 32 * 2**20
"""Bytes up to which a file of weights is read whole."""
WEIGHTS = ".safetensors"
KINDS = (WEIGHTS, ".json", ".model", ".txt")
"""Weights, configurations and vocabularies; pickles are never read."""
INDEX = "model_index.json"
"""Names a pipeline's parts, which lie in directories of their own: then nothing else at the top is read."""
DEEPEST = 4
SNAPSHOT = re.compile(r"[0-9a-f]{40}")


def base_record(directory: Path) -> BaseRecord | None:
    """What lies in a base model's directory; None if that has no file of a kind that is known.

    A few thousand short reads, whatever the size. Raises UserError for a file that cannot be read.
    """
    directory = directory.absolute()
    files = {}
    for path in _files(directory):
        try:
            files[path.relative_to(directory).as_posix()] = file_record(path)
        except OSError as error:
            raise UserError(f"backbone.checkpoint: cannot read {path}: {error.strerror or error}") from error
    if not files:
        return None
    hub = directory.parent.name == "snapshots" and SNAPSHOT.fullmatch(directory.name) is not None
    return BaseRecord(directory=str(directory), commit=directory.name if hub else None, files=files)


def differences(before: BaseRecord, now: BaseRecord) -> list[str]:
    """In words, file by file, what is not as it was. Empty if it is the same model, wherever it lies now.

    A file that came along counts where others of the model lie, and not in the snapshot of a Hub repository, to which a
    download of other parts adds.
    """
    found = []
    for name, was in before.files.items():
        there = now.files.get(name)
        if there is None:
            found.append(f"{name} is gone")
        elif there != was:
            found.append(
                f"{name} is another" + (f" ({was.bytes} bytes, now {there.bytes})" * (was.bytes != there.bytes))
            )
    if now.commit is None:
        places = {os.path.dirname(name) for name in before.files}
        found += [
            f"{name} is new" for name in now.files if name not in before.files and os.path.dirname(name) in places
        ]
    return found


def _files(directory: Path) -> Iterator[Path]:
    """Sorted, links followed. Pipes, sockets and devices are no part of a model; opening them may wait for somebody."""
    pipeline = (directory / INDEX).is_file()
    for place, directories, names in os.walk(directory, followlinks=True):
        here = Path(place)
        deep = len(here.relative_to(directory).parts)
        directories[:] = [] if deep >= DEEPEST else sorted(d for d in directories if not d.startswith("."))
        for name in sorted(names):
            wanted = name == INDEX if pipeline and deep == 0 else name.endswith(KINDS) and not name.startswith(".")
            if wanted and ((here / name).is_file() or not (here / name).exists()):
                yield here / name


def file_record(path: Path) -> BaseFile:
    """What lies in a file. Raises OSError."""
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        regions = _regions(handle, size) if path.suffix == WEIGHTS else None
        if regions is None:
            return BaseFile(bytes=size, digest=f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}")
        sha = hashlib.sha256(size.to_bytes(8, "little"))
        for start, length in regions:
            sha.update(os.pread(handle.fileno(), length, start))
        return BaseFile(bytes=size, digest=f"sampled-sha256:{sha.hexdigest()}")


def _regions(handle: BinaryIO, size: int) -> list[tuple[int, int]] | None:
    """(start, length) of the header and of the sampled blocks; None for a file that is read whole, for it is small, or
    no safetensors file."""
    if size <= WHOLE:
        return None
    try:
        header, first = read_header(handle, size)
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        if not all(0 <= begin <= end for begin, end in spans):
            raise ValueError("tensors outside of the file")
        regions = [(0, first)]
        for begin, end in spans:
            regions += [(first + start, count) for start, count in _blocks(int(begin), int(end))]
    except (ValueError, TypeError):
        handle.seek(0)
        return None
    handle.seek(0)
    return regions


def _blocks(begin: int, end: int) -> list[tuple[int, int]]:
    if end - begin <= 3 * BLOCK:
        return [(begin, end - begin)]
    middle = begin + (end - begin - BLOCK) // 2
    return [(begin, BLOCK), (middle, BLOCK), (end - BLOCK, BLOCK)]
