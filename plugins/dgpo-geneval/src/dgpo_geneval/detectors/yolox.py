"""The detector `yolox`: an ONNX file of the YOLOX layout (Ge et al., arXiv 2107.08430), through onnxruntime on the CPU.

After `preproc`, `demo_postprocess` and `multiclass_nms` of Megvii-BaseDetection/YOLOX, which this follows except that
pixels are not rounded to 8 bits and that suppression is by class. Legend: input of h x w pixels, N anchor points.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, file_digest
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.detectors.boxes import BoxDetector, Boxes, best_classes, corners
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_geneval.detectors.options import YoloxOptions

__all__ = ["STRIDES", "YoloxDetector", "decode", "fitted", "letterbox"]

HERE = "detector yolox: file"
STRIDES = (8, 16, 32)
"""Pixels of the input per anchor point and side, in the order of the output's rows."""
GRAY = 114.0
"""Value of the padding, in 0 to 255."""


def fitted(height: int, width: int, side: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Return the scale at which an image fits into the input `side` (height, width), and its (height, width) there."""
    scale = min(side[0] / height, side[1] / width)
    return scale, (max(int(height * scale), 1), max(int(width * scale), 1))


def letterbox(image: Tensor, side: tuple[int, int]) -> Tensor:
    """Return the network's input [1, 3, h, w] for an image [3, H, W], RGB in [0, 1]: BGR in 0 to 255, not normalized,
    resized without anti-aliasing as OpenCV does, at the top left of a gray canvas."""
    _, (height, width) = fitted(image.shape[-2], image.shape[-1], side)
    resized = functional.interpolate(image.flip(0)[None] * 255, (height, width), mode="bilinear", align_corners=False)
    canvas = torch.full((1, 3, *side), GRAY)
    canvas[..., :height, :width] = resized
    return canvas


def decode(output: Tensor, side: tuple[int, int]) -> Tensor:
    """Return the boxes [N, 4] in pixels of the input, (center x, center y, width, height), of a raw output [N, 4...]:
    per stride, row by row, (offset from the grid point, logarithm of the size) in units of the stride."""
    grid = []
    for stride in STRIDES:
        rows, columns = torch.arange(side[0] // stride), torch.arange(side[1] // stride)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        grid.append(torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), stride)], 1))
    points = torch.cat(grid).to(output.dtype)
    stride_ = points[:, 2:]
    return torch.cat([(output[:, :2] + points[:, :2]) * stride_, output[:, 2:4].exp() * stride_], 1)


class YoloxDetector(BoxDetector):
    """YOLOX on the CPU, whatever the device of the run. Boxes only; the entire box decides colors."""

    names = CLASSES
    labels = CLASSES
    options: YoloxOptions

    def __init__(self, options: YoloxOptions, *, device: torch.device) -> None:
        """Open the file. Raises UserError if onnxruntime is missing, or if the file is missing, unreadable or of
        another layout."""
        super().__init__(options, device=device)
        path = Path(options.file)
        self.session = _open(path, options.threads)
        self.digest = file_digest(path).digest
        self.side = _input_side(self.session, path)
        self.input = self.session.get_inputs()[0].name
        _check_output(self.session.get_outputs(), self.side, path)

    def find(self, image: Tensor) -> Boxes:
        """Return the best class of each anchor point, with the score object * class, in pixels of the image."""
        scale, _ = fitted(image.shape[-2], image.shape[-1], self.side)
        (answer,) = self.session.run(None, {self.input: letterbox(image.cpu(), self.side).numpy()})
        output = torch.from_numpy(answer)[0]
        boxes = output[:, :4] if self.options.decoded else decode(output, self.side)
        return best_classes(output[:, 4:5] * output[:, 5:], corners(boxes) / scale)

    def provenance(self) -> Mapping[str, Any]:
        """Return the name and digest of the file beside the thresholds."""
        return {**super().provenance(), "file": Path(self.options.file).name, "digest": self.digest}


def _open(path: Path, threads: int) -> Any:
    """Return an onnxruntime session. Raises UserError."""
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UserError(f"detector yolox needs onnxruntime: pip install 'dgpo-geneval[yolox]' ({error})") from error
    if not path.is_file():
        kind = "is a directory; expected an .onnx file" if path.is_dir() else "does not exist"
        raise UserError(f"{HERE}: {path} {kind}")
    check_file(path, HERE)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        raise UserError(f"{HERE}: {path} cannot be loaded: {error_text(error)}") from error


def _input_side(session: Any, path: Path) -> tuple[int, int]:
    """Return (height, width) of the input. Raises UserError for another input than one RGB image of fixed size."""
    inputs = session.get_inputs()
    shape = inputs[0].shape
    fixed = len(inputs) == 1 and len(shape) == 4 and all(isinstance(edge, int) for edge in shape[1:])
    if not fixed or shape[1] != 3 or shape[0] not in (1, "batch") or any(edge % max(STRIDES) for edge in shape[2:]):
        raise UserError(
            f"{HERE}: {path} has the inputs {[(one.name, one.shape) for one in inputs]}; expected one of [1, 3, H, W] "
            f"with sides fixed to multiples of {max(STRIDES)}"
        )
    return shape[2], shape[3]


def _check_output(outputs: Any, side: tuple[int, int], path: Path) -> None:
    """Raise UserError unless the output is one row of a box, the object's and 80 classes' scores per anchor point."""
    points = sum((side[0] // stride) * (side[1] // stride) for stride in STRIDES)
    shape = outputs[0].shape
    if len(outputs) != 1 or len(shape) != 3 or list(shape[1:]) != [points, 5 + len(CLASSES)]:
        raise UserError(
            f"{HERE}: {path} has the outputs {[(one.name, one.shape) for one in outputs]}; expected one of "
            f"[1, {points}, {5 + len(CLASSES)}], as YOLOX has it for COCO's {len(CLASSES)} classes"
        )
