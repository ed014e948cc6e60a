"""RapidOCR: the PP-OCR models through onnxruntime. They are in its wheel, so nothing is ever downloaded."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file
from dgpo_ocr.engine import Line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpo_ocr.options import OcrOptions

__all__ = ["RapidEngine"]

DETECTION, RECOGNITION = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
"""Models in the wheel of rapidocr 3.10."""
STRIDE = 32
"""The detector rounds the sides of its input to multiples of this."""


class RapidEngine:
    """The engine `rapidocr`, without the classifier of upside-down lines, as the published reward."""

    def __init__(self, options: OcrOptions) -> None:
        """Load the models. Raises UserError if the library or a model is missing."""
        try:
            import rapidocr
        except ImportError as error:
            raise UserError(f"engine 'rapidocr': {error}; install it with: pip install rapidocr onnxruntime") from error
        shipped = Path(rapidocr.__file__).parent / "models"
        self.detection, self.detection_side = options.detection, options.detection_side
        self._recognition = _model(options.recognition_model, shipped / RECOGNITION, read=True)
        settings: dict[str, Any] = {
            "Global.log_level": "critical",  # it would warn of every image without text
            "Global.use_preprocess_img": False,  # it would stretch small images to multiples of 32
            "Global.text_score": 0.0,  # `min_score` is applied by the readers, the same for every engine
            # Paths, because a model that is only named is looked for, and fetched if it is not there.
            "Det.model_path": _model(options.detection_model, shipped / DETECTION),
            "Rec.model_path": self._recognition,
            "Det.limit_type": "max",
            "Det.limit_side_len": options.detection_side,
            "Rec.rec_img_shape": [3, 48, options.recognition_width],
            "EngineConfig.onnxruntime.intra_op_num_threads": options.threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        self._ocr: Any = rapidocr.RapidOCR(params=settings)

    def alphabet(self) -> frozenset[str]:
        """The characters of the model that reads lines."""
        return frozenset("".join(_metadata(Path(self._recognition))["character"].split("\n")))

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        """Lines of an image uint8 [H, W, 3] in BGR. Raises ValueError for one too narrow to look for lines in."""
        height, width = image.shape[:2]
        if self.detection:
            self._check_shape(height, width)
        # The flags of a call stay in force for the next ones, so all are given every time.
        found = self._ocr(image, use_det=self.detection, use_cls=False, use_rec=True)
        if found.txts is None:
            return []
        corners = getattr(found, "boxes", None)
        if corners is None:
            corners = [[(0, 0), (width, 0), (width, height), (0, height)]] * len(found.txts)
        return [
            Line(text, float(score), tuple((float(x), float(y)) for x, y in polygon))
            for text, score, polygon in zip(found.txts, found.scores, corners, strict=True)
        ]

    def _check_shape(self, height: int, width: int) -> None:
        """RapidOCR silently sees no text in an image of which its detector's input would lose a side to rounding."""
        if height <= 30 or width > 8 * height:  # then it pads above and below
            height += 2 * (abs(max(width // 8, 30) * 2 - height) // 2)
        shrunk = min(1.0, self.detection_side / max(height, width))
        if any(round(int(side * shrunk) / STRIDE) == 0 for side in (height, width)):
            raise ValueError(f"an image of {width} x {height} pixels is too narrow to look for lines in")


def _model(chosen: str | None, shipped: Path, *, read: bool = False) -> str:
    """Path of a model. Raises UserError if it is not there, or if it reads but does not say which characters."""
    path = Path(chosen) if chosen is not None else shipped
    if path.is_dir():
        inner = ", ".join(sorted(p.name for p in path.glob("*.onnx"))[:5])
        such = f", such as {inner} in it" if inner else ""
        raise UserError(f"engine 'rapidocr': {path} is a directory; allowed is an .onnx file{such}")
    if not path.is_file():
        hint = "" if chosen is not None else "; dgpo-ocr is made for rapidocr 3.10, whose wheel has it"
        raise UserError(f"engine 'rapidocr': there is no model {path}{hint}")
    check_file(path, "engine 'rapidocr'")
    if chosen is not None and read and "character" not in _metadata(path):
        # RapidOCR would fetch a list of characters for it.
        raise UserError(f"engine 'rapidocr': {path} has no list of characters in its metadata (key `character`)")
    return str(path)


def _metadata(path: Path) -> dict[str, str]:
    """Metadata of an .onnx file. Raises UserError if it is none."""
    onnxruntime = importlib.import_module("onnxruntime")
    settings = onnxruntime.SessionOptions()  # nothing is run: the fastest way to open the file
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise UserError(f"engine 'rapidocr': {path} cannot be loaded: {error}") from error
    return dict(session.get_modelmeta().custom_metadata_map)
