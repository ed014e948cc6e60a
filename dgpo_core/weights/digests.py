"""Fast digests of files of a model.

Reading 20 GB takes a minute, so the digest of a safetensors file above 32 MiB covers its header and 12 KiB of each
tensor: the first, the middle and the last 4 KiB. It detects another model, fine-tuning, precision or quantization, and
scaled, swapped, renamed or reshaped tensors. It does not detect changes outside those 12 KiB, such as a flipped bit or
an edited row of a large embedding. Every other file is read completely.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from dgpo_core.system.headers import read_header
from dgpo_core.system.portable import read_at
from dgpo_schemas.origin import BaseFile

__all__ = ["WEIGHTS", "file_digest", "is_sampled"]

BLOCK = 4096
WHOLE = 32 * 2**20
"""Size in bytes up to which a weights file is read completely."""
WEIGHTS = ".safetensors"
SAMPLED = "sampled-sha256:"


def is_sampled(file: BaseFile) -> bool:
    """Return whether a digest covers only samples of the file."""
    return file.digest.startswith(SAMPLED)


def file_digest(path: Path) -> BaseFile:
    """Return the size and digest of a file. Raises OSError."""
    with path.open("rb") as handle:
        size = os.fstat(handle.fileno()).st_size
        regions = _regions(handle, size) if path.suffix == WEIGHTS else None
        if regions is None:
            return BaseFile(bytes=size, digest=f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}")
        sha = hashlib.sha256(size.to_bytes(8, "little"))
        for start, length in regions:
            sha.update(read_at(handle.fileno(), length, start))
        return BaseFile(bytes=size, digest=f"{SAMPLED}{sha.hexdigest()}")


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
