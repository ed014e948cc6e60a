"""Conditioning rows as bytes: a safetensors file with a checksum of all of its bytes.

A row that is read equals the row that was written bit for bit, in dtype, shape and memory layout.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dgpo_core.types import Conditioning

__all__ = ["DamagedRow", "dump_row", "load_row"]

FORMAT = "dgpo-conditioning-1"
UNKNOWN = "0" * 64
"""In the place of the checksum while it is computed."""


class DamagedRow(ValueError):
    """The bytes are not those of a row that was written with this key. The message is the reason."""


def dump_row(row: Conditioning, key: str) -> bytes | None:
    """Return a row as bytes, or None for tensors that cannot be stored, such as expanded ones.

    key: identifies the row; `load_row` accepts only the same one.
    """
    if not all(_storable(tensor) for tensor in row.tensors.values()):
        return None
    layout = {
        "tensors": [[name, None if t.is_contiguous() else list(t.stride())] for name, t in row.tensors.items()],
        "lengths": {name: list(lengths) for name, lengths in row.lengths.items()},
    }
    metadata = {"format": FORMAT, "key": key, "layout": json.dumps(layout), "sha256": UNKNOWN}
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in row.tensors.items()}
    content: bytes = safetensors.torch.save(tensors, metadata)
    return content.replace(UNKNOWN.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


def load_row(content: bytes, key: str, device: torch.device) -> Conditioning:
    """Return the row that `dump_row` wrote, on a device. Raises DamagedRow if any byte differs."""
    try:
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        checksum: str = metadata["sha256"]
        same = len(checksum) == len(UNKNOWN) and hashlib.sha256(
            content.replace(checksum.encode(), UNKNOWN.encode(), 1)
        ).hexdigest() == checksum  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRow("its header cannot be read") from error
    if not same:
        raise DamagedRow("its checksum differs")
    if (metadata["format"], metadata["key"]) != (FORMAT, key):
        raise DamagedRow("it holds another row")
    layout = json.loads(metadata["layout"])
    tensors = safetensors.torch.load(content)
    return Conditioning(
        {name: _placed(tensors[name], strides, device) for name, strides in layout["tensors"]},
        {name: tuple(lengths) for name, lengths in layout["lengths"].items()},
    )


def _storable(tensor: Any) -> bool:
    """Return whether a tensor has a memory location for each element, and a dtype of safetensors."""
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and tensor.device.type != "meta"
    overlapping = plain and any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
    return plain and not overlapping and not tensor.is_complex() and not tensor.is_quantized


def _placed(tensor: Tensor, strides: list[int] | None, device: torch.device) -> Tensor:
    """Copy a tensor out of the file's buffer, which may be unaligned, with the strides that it had."""
    if strides is None:
        return tensor.clone().to(device)
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=device).copy_(tensor)
