"""PaddleOCR, with a fake that has the interface of version 3: its models require a network.

`PaddleOCR.__init__` and `predict` are those of paddleocr 3.7 (paddleocr/_pipelines/ocr.py). `predict` returns the
result of PaddleX 3.7 (paddlex/inference/pipelines/ocr/pipeline.py, `_OCRPipeline.predict`): a list with one mapping per
image; `rec_boxes` and other unused keys are omitted.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.reward import OcrReward

CPU = torch.device("cpu")
OPEN = Prompt('A sign that says "OPEN"')
made: list[FakePaddleOCR]


class FakePaddleOCR:
    """Recognizes as many lines as the image's blue level."""

    def __init__(
        self,
        text_detection_model_name: str | None = None,
        text_detection_model_dir: str | None = None,
        text_recognition_model_name: str | None = None,
        text_recognition_model_dir: str | None = None,
        use_doc_orientation_classify: bool | None = None,
        use_doc_unwarping: bool | None = None,
        use_textline_orientation: bool | None = None,
        text_det_limit_side_len: int | None = None,
        text_det_limit_type: str | None = None,
        text_rec_score_thresh: float | None = None,
        lang: str | None = None,
        **common: Any,
    ) -> None:
        self.arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__", "common")}
        unknown = common.keys() - {"device", "engine", "engine_config", "enable_hpi", "enable_mkldnn", "cpu_threads"}
        if unknown:
            raise ValueError(f"Unknown argument: {unknown}")
        if lang is not None and (text_detection_model_dir or text_recognition_model_dir):
            warnings.warn("`lang` will be ignored when model directories are not `None`.", stacklevel=2)
        self.arguments |= common
        self.thread = threading.get_ident()
        made.append(self)

    def predict(self, input: Any) -> list[dict[str, Any]]:
        assert isinstance(input, np.ndarray)
        assert (input.ndim, input.shape[2], input.dtype) == (3, 3, np.uint8)
        assert threading.get_ident() == self.thread, "PaddleOCR stays in the thread that created it"
        lines = int(input[0, 0, 0])
        if lines == 9:
            raise RuntimeError("(PreconditionNotMet) oneDNN")
        height, width = input.shape[:2]
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.int16)
        return [
            {
                "input_path": None,
                "page_index": None,
                "model_settings": {"use_doc_preprocessor": False, "use_textline_orientation": False},
                "dt_polys": [corners] * lines,
                "text_rec_score_thresh": 0.0,
                "rec_texts": ["Op", "en", "unsure"][:lines],
                "rec_scores": [0.99, 0.98, 0.2][:lines],
                "rec_polys": [corners] * lines,
            }
        ]


@pytest.fixture(autouse=True)
def paddleocr(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Install the fake."""
    global made
    made = []
    module = types.ModuleType("paddleocr")
    module.PaddleOCR, module.__version__ = FakePaddleOCR, "3.7.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "paddleocr", module)
    monkeypatch.setitem(sys.modules, "paddle", types.ModuleType("paddle"))
    return module


def reward(**options: Any) -> OcrReward:
    return OcrReward(OcrOptions(engine="paddleocr", readers=1, **options), device=CPU)


def images(*blue: int) -> torch.Tensor:
    media = torch.full((len(blue), 3, 70, 90), 200 / 255)
    media[:, 2] = torch.tensor(blue).view(-1, 1, 1) / 255
    return media


def test_results() -> None:
    made_reward = reward()
    scores = made_reward.score(images(0, 1, 2, 3, 9), [OPEN] * 5)
    made_reward.close()
    assert scores.values.nan_to_num(-1).tolist() == [0, 0.5, 1, 1, -1]
    assert scores.missing.tolist() == [False, False, False, False, True]
    assert scores.diagnostics[3]["text"] == "Op en"
    assert scores.diagnostics[4]["reason"] == "RuntimeError: (PreconditionNotMet) oneDNN"
    assert scores.diagnostics[1]["marks"] == [
        {"text": "Op", "polygon": [[0, 0], [90, 0], [90, 70], [0, 70]], "ok": True}
    ]


def test_english_without_classifiers() -> None:
    reward(threads=2, detection_side=512).close()
    (engine,) = made
    assert {name: value for name, value in engine.arguments.items() if value is not None} == {
        "lang": "en",
        "use_doc_orientation_classify": False,
        "use_doc_unwarping": False,
        "use_textline_orientation": False,
        "text_det_limit_side_len": 512,
        "text_det_limit_type": "max",
        "text_rec_score_thresh": 0.0,
        "device": "cpu",
        "cpu_threads": 2,
    }


@pytest.mark.parametrize(
    ("version", "given"), [("3.2.2", None), ("3.3.0", False), ("3.3.1", False), ("3.4.0", None), ("3.30.0", None)]
)
def test_onednn_is_not_used_where_it_fails(monkeypatch: pytest.MonkeyPatch, version: str, given: bool | None) -> None:
    monkeypatch.setattr(sys.modules["paddle"], "__version__", version, raising=False)
    reward().close()
    assert made[0].arguments.get("enable_mkldnn") is given


def model(directory: Path, name: str) -> str:
    """A model directory as PaddleOCR writes it, without the weights."""
    directory.mkdir()
    (directory / "inference.yml").write_text(f"Global:\n  model_name: {name}\nPreProcess: {{}}\n")
    return str(directory)


def test_models_in_directories(tmp_path: Path) -> None:
    detection = model(tmp_path / "det", "PP-OCRv5_mobile_det")
    recognition = model(tmp_path / "rec", "en_PP-OCRv5_mobile_rec")
    reward(detection_model=detection, recognition_model=recognition).close()
    (engine,) = made
    found = {k: v for k, v in engine.arguments.items() if "model" in k or k == "lang"}
    assert found == {
        "lang": None,
        "text_detection_model_name": "PP-OCRv5_mobile_det",
        "text_detection_model_dir": detection,
        "text_recognition_model_name": "en_PP-OCRv5_mobile_rec",
        "text_recognition_model_dir": recognition,
    }


@pytest.mark.parametrize("text", [None, "Global: {}\n", "[]\n", ":\n- {", "\ud800"])
def test_a_directory_without_a_model_is_reported(tmp_path: Path, text: str | None) -> None:
    right, wrong = model(tmp_path / "right", "PP-OCRv5_mobile_det"), tmp_path / "wrong"
    if text is not None:
        wrong.mkdir()
        (wrong / "inference.yml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"wrong.inference\.yml"):
        reward(detection_model=right, recognition_model=str(wrong))


@pytest.mark.parametrize("module", ["paddleocr", "paddle"])
def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError) as caught:
        reward()
    assert "pip install -e . -e plugins/dgpo-remote rapidfuzz paddleocr paddlepaddle" in str(caught.value)
    assert "worker: {python: paddle/bin/python}" in str(caught.value)
    assert module in str(caught.value).splitlines()[-1]


def test_a_failed_download_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: FakePaddleOCR, **arguments: Any) -> None:
        raise Exception("No model source is available!")  # as PaddleX does

    monkeypatch.setattr(FakePaddleOCR, "__init__", fails)
    with pytest.raises(
        UserError, match=r"cannot be loaded: No model source is available! \(without a network, set `det"
    ):
        reward()


def test_another_version_is_refused(paddleocr: types.ModuleType) -> None:
    paddleocr.__version__ = "2.10.0"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"requires PaddleOCR 3, got 2\.10\.0"):
        reward()


def test_a_result_in_another_format_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePaddleOCR, "predict", lambda self, input: [{"res": {}}])
    made_reward = reward()
    scores = made_reward.score(images(1), [OPEN])
    made_reward.close()
    assert scores.missing.tolist() == [True]
    assert "no 'rec_texts'" in scores.diagnostics[0]["reason"]


def test_the_alphabet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read from the given directory or from PaddleOCR's model; otherwise it is unknown."""
    detection = model(tmp_path / "det", "PP-OCRv5_mobile_det")
    recognition = model(tmp_path / "rec", "en_PP-OCRv5_mobile_rec")
    made_reward = reward(detection_model=detection, recognition_model=recognition)
    made_reward.check_prompts([Prompt('a sign "ЯЖ"')])
    made_reward.close()
    with (tmp_path / "rec" / "inference.yml").open("a") as file:
        file.write("PostProcess:\n  name: CTCLabelDecode\n  character_dict: ['O', 'p', 'e', 'n', '2']\n")
    post_op = types.SimpleNamespace(character=["blank", "O", "p", "e", "n", "2", " "])
    pipeline = types.SimpleNamespace(text_rec_model=types.SimpleNamespace(post_op=post_op))
    monkeypatch.setattr(FakePaddleOCR, "paddlex_pipeline", pipeline, raising=False)
    for options in ({"detection_model": detection, "recognition_model": recognition}, {}):
        made_reward = reward(**options)
        made_reward.check_prompts([OPEN, Prompt('a sign "open 2²"')])
        with pytest.raises(
            UserError, match=r"asks for 'b' .* and 1 more, which engine 'paddleocr' with its model cannot read"
        ):
            made_reward.check_prompts([Prompt('a sign "blank"')])
        made_reward.close()


def test_the_version_and_the_models_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_reward = reward()
    assert made_reward.provenance() == {"engine": "paddleocr 3.7.0, paddlepaddle 3"}, "its models are not known"
    made_reward.close()
    chosen = {f"text_{part}_model": types.SimpleNamespace(model_name=f"PP-OCRv5_{part}") for part in ("det", "rec")}
    monkeypatch.setattr(FakePaddleOCR, "paddlex_pipeline", types.SimpleNamespace(**chosen), raising=False)
    monkeypatch.setattr(sys.modules["paddle"], "__version__", "3.2.0", raising=False)
    made_reward = reward()
    engine = {"engine": "paddleocr 3.7.0, paddlepaddle 3.2.0"}
    assert made_reward.provenance() == engine | {"detection": "PP-OCRv5_det", "recognition": "PP-OCRv5_rec"}
    made_reward.close()
    detection, recognition = model(tmp_path / "det", "mine_det"), model(tmp_path / "rec", "mine_rec")
    (tmp_path / "rec" / "inference.pdiparams").write_bytes(b"weights")
    made_reward = reward(detection_model=detection, recognition_model=recognition)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert made_reward.provenance() == engine | {
        "detection": "mine_det", "recognition": f"mine_rec sha256:{digest}",
    }  # fmt: skip
    made_reward.close()


def test_lines_are_read_in_reading_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(self: FakePaddleOCR, input: Any) -> list[dict[str, Any]]:
        boxes = [(56, 10, 82, 17), (2, 12, 27, 19), (2, 30, 50, 37)]  # WORLD is slightly higher
        corners = [np.array([[a, b], [c, b], [c, d], [a, d]], dtype=np.int16) for a, b, c, d in boxes]
        return [{"rec_texts": ["WORLD", "HELLO", "again"], "rec_scores": [0.9] * 3, "rec_polys": corners}]

    monkeypatch.setattr(FakePaddleOCR, "predict", predict)
    for rule, value in (("normalized", 1), ("flowgrpo", 1 - 8 / 15)):
        made_reward = reward(rule=rule)
        scores = made_reward.score(images(0), [Prompt('a sign "Hello World again"')])
        made_reward.close()
        assert scores.values.tolist() == pytest.approx([value])
