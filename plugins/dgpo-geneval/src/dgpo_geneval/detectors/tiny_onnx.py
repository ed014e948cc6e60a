"""Write a tiny network of the YOLOX layout as an ONNX file, without the package onnx: messages of Protocol Buffers.

Field numbers are those of onnx/onnx.proto (ONNX IR version 8, operators 13).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dgpo_geneval.classes import CLASSES
from dgpo_geneval.detectors.yolox import STRIDES

__all__ = ["make_tiny_yolox"]

FLOAT, INT64 = 1, 7
"""TensorProto.DataType"""


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> bytes:
    kind = INT64 if values.dtype == np.int64 else FLOAT
    dims = b"".join(_field(1, edge) for edge in values.shape)
    return dims + _field(2, kind) + _field(8, name) + _field(9, values.tobytes())


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_field(1, _field(1 if isinstance(edge, int) else 2, edge)) for edge in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, FLOAT) + _field(2, dims)))


def _node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | Sequence[int]) -> bytes:
    content = b"".join(_field(1, name) for name in inputs) + b"".join(_field(2, name) for name in outputs)
    content += _field(4, kind)
    for name, value in attributes.items():
        if isinstance(value, int):
            body = _field(3, value) + _field(20, 2)
        else:
            body = b"".join(_field(8, one) for one in value) + _field(20, 7)
        content += _field(5, _field(1, name) + body)
    return content


def make_tiny_yolox(path: str | Path, *, side: int = 64, classes: int = len(CLASSES), seed: int = 0) -> Path:
    """Write a random network with one convolution per stride, and return the path.

    Input `images` [1, 3, side, side], output [1, N, 5 + classes] whose last 1 + classes columns are sigmoids. The same
    arguments write the same bytes.
    """
    width, draws = 5 + classes, np.random.default_rng(seed)
    nodes, tensors = [], [_tensor("flat", np.array([1, width, -1])), _tensor("parts", np.array([4, 1 + classes]))]
    for stride in STRIDES:
        weight = draws.normal(0, 2 / (255 * stride), (width, 3, stride, stride)).astype(np.float32)
        tensors.append(_tensor(f"w{stride}", weight))
        steps = {"kernel_shape": (stride, stride), "strides": (stride, stride)}
        nodes.append(_node("Conv", ["images", f"w{stride}"], [f"c{stride}"], **steps))
        nodes.append(_node("Reshape", [f"c{stride}", "flat"], [f"f{stride}"]))
    nodes += [
        _node("Concat", [f"f{stride}" for stride in STRIDES], ["columns"], axis=2),
        _node("Transpose", ["columns"], ["rows"], perm=(0, 2, 1)),
        _node("Split", ["rows", "parts"], ["boxes", "logits"], axis=2),
        _node("Sigmoid", ["logits"], ["chances"]),
        _node("Concat", ["boxes", "chances"], ["output"], axis=2),
    ]
    points = sum((side // stride) ** 2 for stride in STRIDES)
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "tiny-yolox")
    graph += b"".join(_field(5, tensor) for tensor in tensors)
    graph += _field(11, _value("images", (1, 3, side, side))) + _field(12, _value("output", (1, points, width)))
    path = Path(path)
    path.write_bytes(_field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13)))
    return path
