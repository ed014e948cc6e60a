"""Fast digests of a base model's files, to detect that a run is resumed with different base weights.

Reading 20 GB takes a minute, so the digest of a safetensors file above 32 MiB covers its header and 12 KiB of each
tensor: the first, the middle and the last 4 KiB. It detects another model, fine-tuning, precision or quantization, and
scaled, swapped, renamed or reshaped tensors. It does not detect changes outside those 12 KiB, such as a flipped bit or
an edited row of a large embedding. Every other file is read completely.
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
"""Size in bytes up to which a weights file is read completely."""
WEIGHTS = ".safetensors"
KINDS = (WEIGHTS, ".json", ".model", ".txt")
"""Weights, configurations and vocabularies; pickles are never read."""
INDEX = "model_index.json"
"""Lists the components of a pipeline, which are in subdirectories; no other file at the top level is read then."""
DEEPEST = 4
SNAPSHOT = re.compile(r"[0-9a-f]{40}")


def base_record(directory: Path) -> BaseRecord | None:
    """Return the digests of a base model's directory, or None if it has no file of a known kind.

    Takes a few thousand short reads, whatever the size. Raises UserError for a file that cannot be read.
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
    """Describe the differences between two records, file by file; empty if the model is the same, wherever it is.

    New files count only in directories that the record has files of, and not in the snapshot of a Hub repository, to
    which later downloads add files.
    """
    found = []
    for name, old in before.files.items():
        new = now.files.get(name)
        if new is None:
            found.append(f"{name} is missing")
        elif new != old:
            found.append(f"{name} has changed" + (f" ({old.bytes} bytes, now {new.bytes})" * (old.bytes != new.bytes)))
    if now.commit is None:
        places = {os.path.dirname(name) for name in before.files}
        found += [
            f"{name} is new" for name in now.files if name not in before.files and os.path.dirname(name) in places
        ]
    return found


def _files(directory: Path) -> Iterator[Path]:
    """Yield the model's files, sorted, following links; not pipes, sockets and devices, which may block when opened."""
    pipeline = (directory / INDEX).is_file()
    for place, directories, names in os.walk(directory, followlinks=True):
        folder = Path(place)
        depth = len(folder.relative_to(directory).parts)
        directories[:] = [] if depth >= DEEPEST else sorted(d for d in directories if not d.startswith("."))
        for name in sorted(names):
            included = name == INDEX if pipeline and depth == 0 else name.endswith(KINDS) and not name.startswith(".")
            if included and ((folder / name).is_file() or not (folder / name).exists()):
                yield folder / name


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
    """Return (start, length) of the header and the sampled blocks, or None for a file to read completely.

    That is a small file, or one that is not a valid safetensors file.
    """
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
