"""The engines there are, each imported when it is asked for."""

from __future__ import annotations

from dgpo_ocr.engine import Engine
from dgpo_ocr.options import OcrOptions

__all__ = ["make_engine"]


def make_engine(options: OcrOptions) -> Engine:
    """The engine that the options name. Raises UserError saying what to install, or which file is missing."""
    if options.engine == "paddleocr":
        from dgpo_ocr.paddle import PaddleEngine

        return PaddleEngine(options)
    from dgpo_ocr.rapid import RapidEngine

    return RapidEngine(options)
