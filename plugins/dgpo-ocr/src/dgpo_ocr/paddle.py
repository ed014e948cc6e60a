"""PaddleOCR 3.x, the engine of the published reward: English models, no classifiers of orientation, on the CPU.

Its interface, as used here (PaddlePaddle/PaddleOCR, paddleocr/_pipelines/ocr.py, and PaddleX's
paddlex/inference/pipelines/ocr/pipeline.py): `PaddleOCR(...).predict(image)` takes a BGR array and returns one
mapping per image with `rec_texts`, `rec_scores` and `rec_polys` (arrays [4, 2]), in an order of its own, empty
where no text is seen. Models of its own are fetched by PaddleOCR on first use, unless directories are given.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, where_instead
from dgpo_ocr.engine import Line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpo_ocr.options import OcrOptions

__all__ = ["PaddleEngine"]

INSTALL = """\
engine 'paddleocr' needs PaddleOCR 3, and it wants an environment of its own, because it pins NumPy and OpenCV:
  python -m venv paddle
  paddle/bin/pip install dgpo-remote rapidfuzz paddleocr paddlepaddle
  paddle/bin/pip install --no-deps dgpo-ocr
and in the run file, beside `use: ocr`:
  worker: {python: paddle/bin/python}"""

DESCRIPTION = "inference.yml"
"""What a directory of a model has to say of it."""


class PaddleEngine:
    """The engine `paddleocr`."""

    def __init__(self, options: OcrOptions) -> None:
        """Load the models. Raises UserError saying what to install, what a directory lacks, or why PaddleOCR fails."""
        try:
            paddleocr = importlib.import_module("paddleocr")
            importlib.import_module("paddle")
        except ImportError as error:
            raise UserError(f"{INSTALL}\n({error})") from error
        version = str(getattr(paddleocr, "__version__", "3"))
        if version.partition(".")[0] != "3":
            raise UserError(f"engine 'paddleocr' needs PaddleOCR 3, {version} is installed")
        for name in ("paddleocr", "paddlex"):  # they tell of every model they load
            logging.getLogger(name).setLevel(logging.ERROR)
        models = _models(options)
        self._recognition = options.recognition_model
        try:
            self._ocr: Any = paddleocr.PaddleOCR(
                **models,
                use_doc_orientation_classify=False,
                use_doc_unwarping=False,
                use_textline_orientation=False,
                text_det_limit_type="max",
                text_det_limit_side_len=options.detection_side,
                text_rec_score_thresh=0.0,  # `min_score` is applied by the readers, the same for every engine
                device="cpu",
                cpu_threads=options.threads,
            )
        except Exception as error:  # it raises plain ones, as where a model cannot be fetched
            raise UserError(
                f"engine 'paddleocr' cannot be loaded: {error} (without a network, `detection_model` and "
                "`recognition_model` name directories of models fetched elsewhere)"
            ) from error

    def alphabet(self) -> frozenset[str] | None:
        """The characters of the model that reads lines: those in its directory, or of the one that PaddleOCR fetched,
        where it shows them (`post_op.character` in paddlex/inference/models/text_recognition/processors.py)."""
        if self._recognition is not None:
            characters = _characters(Path(self._recognition))
        else:
            found: Any = self._ocr
            for name in ("paddlex_pipeline", "text_rec_model", "post_op", "character"):
                found = getattr(found, name, None)
            characters = found[1:] if isinstance(found, list) else None  # the first stands for nothing: "blank"
        return frozenset("".join(map(str, characters))) if characters else None

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        """Lines of an image uint8 [H, W, 3] in BGR. Raises ValueError for an answer in another format."""
        (found,) = self._ocr.predict(image)
        try:
            texts, scores, polygons = found["rec_texts"], found["rec_scores"], found["rec_polys"]
        except KeyError as error:
            raise ValueError(f"PaddleOCR's answer has no {error}") from error
        return [
            Line(str(text), float(score), tuple((float(x), float(y)) for x, y in polygon))
            for text, score, polygon in zip(texts, scores, polygons, strict=True)
        ]


def _models(options: OcrOptions) -> dict[str, str]:
    """Arguments that choose the models: by language, or by directories."""
    if options.detection_model is None or options.recognition_model is None:
        return {"lang": "en"}
    found = {}
    for kind, directory in (("detection", options.detection_model), ("recognition", options.recognition_model)):
        found[f"text_{kind}_model_dir"] = directory
        found[f"text_{kind}_model_name"] = _name(Path(directory))
        for weights in sorted(Path(directory).glob("inference.pd*")):
            check_file(weights, "engine 'paddleocr'")
    return found


def _name(directory: Path) -> str:
    """Name of the model in a directory; PaddleOCR refuses one that it is not told the name of."""
    try:
        return str(_description(directory)["Global"]["model_name"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"engine 'paddleocr': {directory / DESCRIPTION} names no model under Global, model_name"
        ) from error


def _characters(directory: Path) -> list[Any] | None:
    """The characters of the model in a directory, as PaddleX reads them; None where they are not there."""
    try:
        found = _description(directory)["PostProcess"]["character_dict"]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, list) else None


def _description(directory: Path) -> Any:
    """What a model's directory says of it. Raises UserError where that cannot be read."""
    file = directory / DESCRIPTION
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        instead = where_instead(directory, DESCRIPTION) if directory.is_dir() else ""
        raise UserError(
            f"engine 'paddleocr': {file} cannot be read: {error.strerror}{instead or '; is it a model?'}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"engine 'paddleocr': {file} is no YAML file; is it a model?") from error
