"""Blobs: JSON and tensors serialized together as safetensors, exact to the bit.

A blob holds tensors, and JSON text under `dgpo` in its `__metadata__`. Reading one validates everything before any
tensor is created. Pickle is never used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dgpo_schemas.service import PROTOCOL
from dgpo_schemas.text import clean, error_text

__all__ = ["HEADER", "LENGTH", "Blob", "Malformed", "OtherProtocol", "Unfit", "check_protocol", "pack"]

LENGTH = 8
"""Bytes at the start of a blob that hold the length of its header."""
HEADER = 32 * 2**20
"""Largest header of a blob in bytes: parsed JSON takes many times as much memory."""
MOST_TENSORS = 4096
MOST_DIMENSIONS = 16
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
         "U64": 8, "F64": 8}  # fmt: skip
"""Bytes per element, by safetensors dtype name."""


class Malformed(ValueError):
    """The bytes are not a valid message."""


class OtherProtocol(Malformed):
    """The message uses another version of the protocol."""


class Unfit(ValueError):
    """A valid message whose media cannot be scored: wrong dtype, shape or count."""


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """Serialize JSON and tensors as a blob."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    if len(on_cpu) > 1:
        on_cpu = {name: tensor.clone() for name, tensor in on_cpu.items()}  # safetensors rejects shared memory
    blob: bytes = safetensors.torch.save(on_cpu, {"dgpo": json.dumps(header)})
    return blob


class Blob:
    """A received blob. Raises Malformed.

    header: its JSON object; shapes, dtypes: those of its tensors, by name (dtypes as safetensors names them). The
    tensors are created on first access.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        head = _head(data)
        try:
            self.header = json.loads(head.pop("__metadata__")["dgpo"])
        except (KeyError, TypeError, AttributeError):
            raise Malformed("the safetensors `__metadata__` has no string `dgpo`") from None
        except (ValueError, RecursionError) as error:
            raise Malformed(f"`dgpo` in the `__metadata__` is not JSON: {clean(str(error), 200)}") from None
        if not isinstance(self.header, dict):
            raise Malformed("`dgpo` in the `__metadata__` must be a JSON object")
        self.shapes, self.dtypes = _described(head, len(data) - LENGTH - int.from_bytes(data[:LENGTH], "little"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, each copied into its own aligned memory.

        Tensors inside the blob are not aligned, and math libraries return the same bits for aligned memory only.
        """
        try:
            return {name: tensor.clone() for name, tensor in safetensors.torch.load(self._data).items()}
        except (safetensors.SafetensorError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
                RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            raise Malformed(f"the safetensors are damaged: {error_text(error, 300)}") from None


def _head(data: bytes) -> dict[str, Any]:
    """Parse the JSON header of safetensors."""
    length = int.from_bytes(data[:LENGTH], "little")
    if len(data) < LENGTH or not 2 <= length <= len(data) - LENGTH:
        raise Malformed("the body is not in the safetensors format")
    if length > HEADER:
        raise Malformed(f"the safetensors header has {length >> 20} MiB; at most {HEADER >> 20} MiB are allowed")
    try:
        head = json.loads(data[LENGTH : LENGTH + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _DuplicateKey) else "its header is not JSON"
        raise Malformed(f"the body is not in the safetensors format: {reason}") from None
    if not isinstance(head, dict):
        raise Malformed("the body is not in the safetensors format: its header is not an object")
    return head


class _DuplicateKey(ValueError):
    """An object has a duplicate key."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        raise _DuplicateKey("its header has a duplicate key")
    return unique


def _described(head: Mapping[str, Any], room: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return (shapes, dtypes) of the tensors by name.

    Their bytes must fill the `room` bytes after the header without gaps or overlaps. Otherwise a few bytes could claim
    to be any number of tensors of any size.
    """
    shapes, dtypes, places = {}, {}, []
    if len(head) > MOST_TENSORS:
        raise Malformed(f"the safetensors hold {len(head)} tensors; at most {MOST_TENSORS} are allowed")
    for name, entry in head.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Malformed("the safetensors header does not describe its tensors")
        shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
        fits = isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2
        if not fits or len(shape) > MOST_DIMENSIONS:
            raise Malformed("the safetensors header does not describe its tensors")
        if dtype in BYTES and offsets[1] - offsets[0] != BYTES[dtype] * math.prod(shape):
            raise Malformed(f"the safetensors are damaged: the size of a tensor does not match its shape {shape}")
        shapes[name], dtypes[name] = tuple(shape), clean(dtype, 20)
        places.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(places):
        if first != end or last < first:
            raise Malformed("the safetensors are damaged: the bytes of their tensors overlap or leave gaps")
        end = last
    if end != room:
        raise Malformed(f"the safetensors are damaged: the header describes {end} bytes of tensors, got {room}")
    return shapes, dtypes


def _are_sizes(values: Any) -> bool:
    """Whether the value is a list of integers in [0, 2**48)."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def check_protocol(header: Mapping[str, Any]) -> None:
    """Raise OtherProtocol unless the message uses this version of the protocol."""
    if header.get("protocol") != PROTOCOL:
        protocol = header.get("protocol")
        version = clean(repr(protocol) if isinstance(protocol, str) else str(protocol), 40)
        raise OtherProtocol(
            f"uses protocol version {version}, this dgpo uses version {PROTOCOL}; "
            "install the same version of dgpo on both sides"
        )
