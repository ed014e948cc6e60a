"""Blobs: JSON and tensors as one piece of safetensors, exact to the bit.

A blob holds tensors, and JSON as text under `dgpo` in its `__metadata__`. Reading one checks everything before a tensor
is made of it; nothing is ever unpickled.
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
"""Bytes at the beginning of a blob that hold the length of its header."""
HEADER = 32 * 2**20
"""Bytes of a blob's header that are believed: JSON takes many times as much memory once it is read."""
MOST_TENSORS = 4096
MOST_DIMENSIONS = 16
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
         "U64": 8, "F64": 8}  # fmt: skip
"""Of a number, by safetensors' name of its type."""


class Malformed(ValueError):
    """Bytes that are no such message."""


class OtherProtocol(Malformed):
    """A message of another version of dgpo."""


class Unfit(ValueError):
    """A message that can be read, about media that cannot be scored: dtype, shape or count."""


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """JSON and tensors as a blob."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    if len(on_cpu) > 1:
        on_cpu = {name: tensor.clone() for name, tensor in on_cpu.items()}  # safetensors refuse shared memory
    blob: bytes = safetensors.torch.save(on_cpu, {"dgpo": json.dumps(header)})
    return blob


class Blob:
    """A blob that was received: `header` is its JSON, `shapes` and `dtypes` (safetensors' names) are those of its
    tensors, which are made when they are asked for. Raises Malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        head = _head(data)
        try:
            self.header = json.loads(head.pop("__metadata__")["dgpo"])
        except (KeyError, TypeError, AttributeError):
            raise Malformed("the safetensors have no text `dgpo` in their `__metadata__`") from None
        except (ValueError, RecursionError) as error:
            raise Malformed(f"`dgpo` in the `__metadata__` is not JSON: {clean(str(error), 200)}") from None
        if not isinstance(self.header, dict):
            raise Malformed("`dgpo` in the `__metadata__` must be a JSON object")
        self.shapes, self.dtypes = _described(head, len(data) - LENGTH - int.from_bytes(data[:LENGTH], "little"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, each in memory of its own: arithmetic libraries promise the same bits for aligned memory only,
        and inside the blob nothing is aligned."""
        try:
            return {name: tensor.clone() for name, tensor in safetensors.torch.load(self._data).items()}
        except (safetensors.SafetensorError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
                RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            raise Malformed(f"the safetensors are damaged: {error_text(error, 300)}") from None


def _head(data: bytes) -> dict[str, Any]:
    """The JSON with which safetensors begin."""
    length = int.from_bytes(data[:LENGTH], "little")
    if len(data) < LENGTH or not 2 <= length <= len(data) - LENGTH:
        raise Malformed("the body is not in the safetensors format")
    if length > HEADER:
        raise Malformed(f"the header of the safetensors has {length >> 20} MiB, more than {HEADER >> 20}")
    try:
        head = json.loads(data[LENGTH : LENGTH + length], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        twice = f": {error}" if isinstance(error, _Twice) else ": its header is not JSON"
        raise Malformed(f"the body is not in the safetensors format{twice}") from None
    if not isinstance(head, dict):
        raise Malformed("the body is not in the safetensors format: its header is no object")
    return head


class _Twice(ValueError):
    """A name that stands twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Twice("a name stands twice in its header")
    return made


def _described(head: Mapping[str, Any], room: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(shapes, dtypes) of the tensors, whose bytes must fill the `room` behind the header one after the other: a few
    bytes could else claim to be any number of tensors of any size."""
    shapes, dtypes, places = {}, {}, []
    if len(head) > MOST_TENSORS:
        raise Malformed(f"the safetensors hold {len(head)} tensors, more than {MOST_TENSORS}")
    for name, entry in head.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Malformed("the safetensors' header does not describe its tensors")
        shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
        fits = isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2
        if not fits or len(shape) > MOST_DIMENSIONS:
            raise Malformed("the safetensors' header does not describe its tensors")
        if dtype in BYTES and offsets[1] - offsets[0] != BYTES[dtype] * math.prod(shape):
            raise Malformed(f"the safetensors are damaged: a tensor of the shape {shape} does not have its size")
        shapes[name], dtypes[name] = tuple(shape), clean(dtype, 20)
        places.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(places):
        if first != end or last < first:
            raise Malformed("the safetensors are damaged: the bytes of their tensors overlap or leave gaps")
        end = last
    if end != room:
        raise Malformed(f"the safetensors are damaged: their tensors have {end} bytes, and there are {room}")
    return shapes, dtypes


def _are_sizes(values: Any) -> bool:
    """Whether it is a list of whole numbers, none of them negative or beyond what a machine counts to."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def check_protocol(header: Mapping[str, Any]) -> None:
    """Raises OtherProtocol."""
    if header.get("protocol") != PROTOCOL:
        protocol = header.get("protocol")
        theirs = clean(repr(protocol) if isinstance(protocol, str) else str(protocol), 40)
        raise OtherProtocol(
            f"speaks version {theirs} of the protocol, this dgpo speaks version {PROTOCOL}; "
            "install the same version of dgpo on both sides"
        )
