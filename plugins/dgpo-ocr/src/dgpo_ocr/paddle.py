"""PaddleOCR 3.x, the engine of the published reward: English models, no orientation classifiers, on the CPU.

The interface used here (PaddlePaddle/PaddleOCR, paddleocr/_pipelines/ocr.py, and PaddleX's
paddlex/inference/pipelines/ocr/pipeline.py): `PaddleOCR(...).predict(image)` takes a BGR array and returns one mapping
per image with `rec_texts`, `rec_scores` and `rec_polys` (arrays [4, 2]), in its own order, empty if there is no text.
PaddleOCR downloads its models on first use, unless directories are given.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dgpo_core.errors import UserError
from dgpo_core.weights import check_file, file_digest, where_instead
from dgpo_ocr.engine import Line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dgpo_ocr.options import OcrOptions

__all__ = ["PaddleEngine"]

INSTALL = """\
engine 'paddleocr' requires PaddleOCR 3, in a separate environment because it pins NumPy and OpenCV.
In a checkout of dgpo:
  python -m venv paddle
  paddle/bin/pip install -e . -e plugins/dgpo-remote rapidfuzz paddleocr paddlepaddle
  paddle/bin/pip install --no-deps -e plugins/dgpo-ocr
and in the run file, beside `use: ocr`:
  worker: {python: paddle/bin/python}"""

DESCRIPTION = "inference.yml"
"""The description file in a model directory."""


class PaddleEngine:
    """The engine `paddleocr`."""

    def __init__(self, options: OcrOptions) -> None:
        """Load the models. Raises UserError if a package or a model file is missing, or if PaddleOCR fails."""
        try:
            paddleocr = importlib.import_module("paddleocr")
            paddle = importlib.import_module("paddle")
        except ImportError as error:
            raise UserError(f"{INSTALL}\n({error})") from error
        version = str(getattr(paddleocr, "__version__", "3"))
        if version.partition(".")[0] != "3":
            raise UserError(f"engine 'paddleocr' requires PaddleOCR 3, got {version}")
        for name in ("paddleocr", "paddlex"):  # they log every model they load
            logging.getLogger(name).setLevel(logging.ERROR)
        models = _models(options)
        self._version = f"paddleocr {version}, paddlepaddle {getattr(paddle, '__version__', '3')}"
        self._detection, self._recognition = options.detection_model, options.recognition_model
        try:
            self._ocr: Any = paddleocr.PaddleOCR(
                **models,
                use_doc_orientation_classify=False,
                use_doc_unwarping=False,
                use_textline_orientation=False,
                text_det_limit_type="max",
                text_det_limit_side_len=options.detection_side,
                text_rec_score_thresh=0.0,  # the reward applies `min_score`, equally for all engines
                device="cpu",
                cpu_threads=options.threads,
                **_without_onednn(str(getattr(paddle, "__version__", ""))),
            )
        except Exception as error:  # PaddleOCR raises plain `Exception`, such as for a failed download
            raise UserError(
                f"engine 'paddleocr' cannot be loaded: {error} (without a network, set `detection_model` and "
                "`recognition_model` to directories of downloaded models)"
            ) from error

    def alphabet(self) -> frozenset[str] | None:
        """Return the characters of the recognition model, or None if unknown.

        They are read from its directory, or from the model that PaddleOCR downloaded (`post_op.character` in
        paddlex/inference/models/text_recognition/processors.py).
        """
        if self._recognition is not None:
            characters = _characters(Path(self._recognition))
        else:
            found = self._loaded("text_rec_model", "post_op", "character")
            characters = found[1:] if isinstance(found, list) else None  # the first is CTC's "blank"
        return frozenset("".join(map(str, characters))) if characters else None

    def provenance(self) -> Mapping[str, str]:
        """Return the versions of PaddleOCR and PaddlePaddle, and the models that are known: the names of those that
        PaddleOCR chose, with the digests of the weights if a directory was given."""
        found = {"engine": self._version}
        for kind, part, given in (
            ("detection", "text_det_model", self._detection),
            ("recognition", "text_rec_model", self._recognition),
        ):
            if given is not None:
                digests = (file_digest(path).digest for path in sorted(Path(given).glob("inference.pdiparams")))
                found[kind] = " ".join([_name(Path(given)), *digests])
            elif isinstance(name := self._loaded(part, "model_name"), str):
                found[kind] = name
        return found

    def _loaded(self, *names: str) -> Any:
        """Return an attribute of PaddleX's pipeline, None if there is none."""
        found: Any = getattr(self._ocr, "paddlex_pipeline", None)
        for name in names:
            found = getattr(found, name, None)
        return found

    def read(self, image: NDArray[np.uint8]) -> list[Line]:
        """Recognize the lines of an image, uint8 [H, W, 3] in BGR. Raises ValueError for another result format."""
        (found,) = self._ocr.predict(image)
        try:
            texts, scores, polygons = found["rec_texts"], found["rec_scores"], found["rec_polys"]
        except KeyError as error:
            raise ValueError(f"PaddleOCR's result has no {error}") from error
        return [
            Line(str(text), float(score), tuple((float(x), float(y)) for x, y in polygon))
            for text, score, polygon in zip(texts, scores, polygons, strict=True)
        ]


def _without_onednn(version: str) -> dict[str, bool]:
    """Return the argument that avoids oneDNN with PaddlePaddle 3.3, where it fails on every image.

    PaddlePaddle/Paddle issue 77340: "ConvertPirAttribute2RuntimeAttribute not support".
    """
    return {"enable_mkldnn": False} if version.startswith("3.3.") else {}


def _models(options: OcrOptions) -> dict[str, str]:
    """Return the arguments that select the models, by language or by directories."""
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
    """Return the name of the model in a directory, which PaddleOCR requires."""
    try:
        return str(_description(directory)["Global"]["model_name"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"engine 'paddleocr': {directory / DESCRIPTION} names no model under Global, model_name"
        ) from error


def _characters(directory: Path) -> list[Any] | None:
    """Return the characters of the model in a directory, as PaddleX reads them, or None if they are missing."""
    try:
        found = _description(directory)["PostProcess"]["character_dict"]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, list) else None


def _description(directory: Path) -> Any:
    """Read the description of the model in a directory. Raises UserError if that fails."""
    file = directory / DESCRIPTION
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        instead = where_instead(directory, DESCRIPTION) if directory.is_dir() else ""
        raise UserError(
            f"engine 'paddleocr': {file} cannot be read: {error.strerror}{instead or '; is this a model directory?'}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"engine 'paddleocr': {file} is not a YAML file; is this a model directory?") from error
