"""Construction of engines, each imported on demand."""

from __future__ import annotations

from dgpo_ocr.engine import Engine
from dgpo_ocr.options import OcrOptions

__all__ = ["make_engine"]


def make_engine(options: OcrOptions) -> Engine:
    """Build the engine that the options name. Raises UserError if a package or a file is missing."""
    if options.engine == "paddleocr":
        from dgpo_ocr.paddle import PaddleEngine

        return PaddleEngine(options)
    from dgpo_ocr.rapid import RapidEngine

    return RapidEngine(options)
