"""RapidOCR: the PP-OCR models with onnxruntime. Its wheel contains the models, so nothing is downloaded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, file_digest
from dgpo_ocr.engine import Line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpo_ocr.options import OcrOptions

__all__ = ["RapidEngine"]

DETECTION, RECOGNITION = "PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"
"""Models in the wheel of rapidocr 3.10."""
STRIDE = 32
"""The detector rounds its input's height and width to multiples of this."""


class RapidEngine:
    """The engine `rapidocr`, without the orientation classifier, as in the published reward."""

    def __init__(self, options: OcrOptions) -> None:
        """Load the models. Raises UserError if the library or a model is missing."""
        try:
            import rapidocr
        except ImportError as error:
            raise UserError(f"engine 'rapidocr': {error}; install it with: pip install rapidocr onnxruntime") from error
        shipped = Path(rapidocr.__file__).parent / "models"
        self.detection, self.detection_side = options.detection, options.detection_side
        self._recognition = _model(options.recognition_model, shipped / RECOGNITION, read=True)
        self._detection = _model(options.detection_model, shipped / DETECTION)
        settings: dict[str, Any] = {
            "Global.log_level": "critical",  # it would warn of every image without text
            "Global.use_preprocess_img": False,  # it would stretch small images to multiples of 32
            "Global.text_score": 0.0,  # the reward applies `min_score`, equally for all engines
            # Paths instead of names: RapidOCR downloads a named model that is missing.
            "Det.model_path": self._detection,
            "Rec.model_path": self._recognition,
            "Det.limit_type": "max",
            "Det.limit_side_len": options.detection_side,
            "Rec.rec_img_shape": [3, 48, options.recognition_width],
            "EngineConfig.onnxruntime.intra_op_num_threads": options.threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        self._ocr: Any = rapidocr.RapidOCR(params=settings)

    def alphabet(self) -> frozenset[str]:
        """Return the characters of the recognition model."""
        return frozenset("".join(_metadata(Path(self._recognition))["character"].split("\n")))

    def provenance(self) -> Mapping[str, str]:
        """Return the versions of RapidOCR and onnxruntime, and the models."""
        runtime = importlib.import_module("onnxruntime").__version__
        models = {"recognition": Path(self._recognition)}
        if self.detection:
            models = {"detection": Path(self._detection), **models}
        engine = {"engine": f"rapidocr {metadata.version('rapidocr')}, onnxruntime {runtime}"}
        return engine | {kind: f"{path.name} {file_digest(path).digest}" for kind, path in models.items()}

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        """Recognize the lines of an image, uint8 [H, W, 3] in BGR. Raises ValueError if it is too narrow."""
        height, width = image.shape[:2]
        if self.detection:
            self._check_shape(height, width)
        # The flags persist between calls, so each call sets all of them.
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
        """Raise ValueError if a side of the detector's input rounds to 0, where RapidOCR silently returns no text."""
        if height <= 30 or width > 8 * height:  # RapidOCR pads above and below
            height += 2 * (abs(max(width // 8, 30) * 2 - height) // 2)
        shrunk = min(1.0, self.detection_side / max(height, width))
        if any(round(int(side * shrunk) / STRIDE) == 0 for side in (height, width)):
            raise ValueError(f"an image of {width} x {height} pixels is too narrow to detect lines")


def _model(chosen: str | None, shipped: Path, *, read: bool = False) -> str:
    """Return the path of a model. Raises UserError if it is missing, or a recognition model without characters."""
    path = Path(chosen) if chosen is not None else shipped
    if path.is_dir():
        inner = ", ".join(sorted(p.name for p in path.glob("*.onnx"))[:5])
        such = f", such as {inner} in it" if inner else ""
        raise UserError(f"engine 'rapidocr': {path} is a directory; expected an .onnx file{such}")
    if not path.is_file():
        hint = "" if chosen is not None else "; dgpo-ocr requires rapidocr 3.10, whose wheel contains it"
        raise UserError(f"engine 'rapidocr': no such model: {path}{hint}")
    check_file(path, "engine 'rapidocr'")
    if chosen is not None and read and "character" not in _metadata(path):
        # RapidOCR would download a list of characters for it.
        raise UserError(f"engine 'rapidocr': {path} has no list of characters in its metadata (key `character`)")
    return str(path)


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of an .onnx file. Raises UserError if it cannot be loaded."""
    onnxruntime = importlib.import_module("onnxruntime")
    settings = onnxruntime.SessionOptions()  # the model is not run: open it as fast as possible
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        raise UserError(f"engine 'rapidocr': {path} cannot be loaded: {error}") from error
    return dict(session.get_modelmeta().custom_metadata_map)
