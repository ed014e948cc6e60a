"""The detector `yolox`: pixels against OpenCV, boxes worked out by hand, files that are something else."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dgpo_core.errors import UserError
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.contract import check_detector
from dgpo_geneval.detectors.options import YoloxOptions
from dgpo_geneval.detectors.testing import make_tiny_yolox
from dgpo_geneval.detectors.yolox import STRIDES, YoloxDetector, decode, fitted, letterbox
from dgpo_geneval.options import GenEvalOptions
from dgpo_geneval.reward import GenEvalReward

CPU = torch.device("cpu")


def pictures(height: int = 60, width: int = 88, count: int = 3) -> Tensor:
    """Smooth colors of 8 bits."""
    coarse = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(1))
    fine = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return (fine * 255).round() / 255


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_yolox(tmp_path_factory.mktemp("yolox") / "tiny.onnx")


def detector(file: Path, **options: Any) -> YoloxDetector:
    return YoloxDetector(YoloxOptions(file=str(file), **options), device=CPU)


# -- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 88), (416, 416), (500, 741), (900, 300), (33, 50)])
def test_pixels_are_opencvs(size: tuple[int, int]) -> None:
    """As in YOLOX's `preproc`, up to the rounding of OpenCV's resize to 8 bits, whose weights are of 11 bits."""
    (image,) = pictures(*size, count=1)
    bgr = np.ascontiguousarray((image.permute(1, 2, 0) * 255).round().byte().numpy()[:, :, ::-1])
    ratio = min(416 / size[0], 416 / size[1])
    resized = cv2.resize(bgr, (int(size[1] * ratio), int(size[0] * ratio)), interpolation=cv2.INTER_LINEAR)
    expected = np.full((416, 416, 3), 114, np.uint8)
    expected[: resized.shape[0], : resized.shape[1]] = resized
    found = letterbox(image, (416, 416))
    assert found.dtype == torch.float32
    assert found.shape == (1, 3, 416, 416)
    difference = (found[0] - torch.from_numpy(expected.transpose(2, 0, 1).astype(np.float32))).abs()
    assert difference.max() < 1.1
    assert difference.mean() < 0.3


def test_channels_are_blue_green_red_of_0_to_255() -> None:
    image = torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(-1, 64, 32)
    found = letterbox(image, (64, 64))
    assert found[0, :, 0, 0].tolist() == [0.0, 127.5, 255.0]
    assert (found[..., 32:] == 114).all()
    assert (found[..., :32] != 114).any()


def test_a_line_fits() -> None:
    assert fitted(1, 3000, (416, 416))[1] == (1, 416)


# -- boxes ----------------------------------------------------------------------------------------------------------


def test_boxes_are_decoded_point_by_point() -> None:
    """Against a loop over the grids, in the order of the published rows."""
    side = (64, 96)
    raw = torch.randn(12 * 8 + 6 * 4 + 3 * 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = iter(raw.tolist())
    expected = []
    for stride in STRIDES:
        for y in range(side[0] // stride):
            for x in range(side[1] // stride):
                dx, dy, w, h = next(rows)
                expected.append([(x + dx) * stride, (y + dy) * stride, np.exp(w) * stride, np.exp(h) * stride])
    torch.testing.assert_close(decode(raw, side), torch.tensor(expected, dtype=torch.float64))


class Session:
    """In the file's place: answers that are known."""

    def __init__(self, rows: dict[int, tuple[list[float], float, dict[int, float]]], points: int = 84) -> None:
        self.answer = np.zeros((1, points, 85), np.float32)
        for row, (box, chance, classes) in rows.items():
            self.answer[0, row, :4], self.answer[0, row, 4] = box, chance
            for label, score in classes.items():
                self.answer[0, row, 5 + label] = score

    def run(self, outputs: None, inputs: dict[str, Any]) -> list[Any]:
        assert list(inputs) == ["images"]
        return [self.answer.copy()]


def test_known_answers(file: Path) -> None:
    """An input of 64 x 64 for an image of 128 x 64, so that a pixel of the input is two of the image."""
    cat, dog = CLASSES.index("cat"), CLASSES.index("dog")
    seen = detector(file, score=0.3, counting=0.5)
    seen.session = Session(
        {
            9: ([0.5, 0.25, 0.0, np.log(2)], 0.8, {cat: 0.9, dog: 0.8}),  # point (1, 1) of stride 8
            10: ([-0.5, 0.25, 0.0, np.log(2)], 0.8, {cat: 0.8}),  # the same box
            83: ([0.0, -1.0, 0.0, 0.0], 0.5, {dog: 0.7}),  # point (1, 1) of stride 32
            20: ([0.0, 0.0, 0.0, 0.0], 0.5, {dog: 0.5}),  # below the threshold
        }
    )
    (found,) = seen.detect(torch.zeros(1, 3, 128, 64))
    assert [(one.label, one.box) for one in found] == [("cat", (16, 4, 32, 36)), ("dog", (32, 0, 64, 32))]
    assert [one.score for one in found] == pytest.approx([0.72, 0.35])
    assert len(detector(file).detect(torch.zeros(1, 3, 128, 64))) == 1
    seen = detector(file, decoded=True)
    seen.session = Session({0: ([12, 10, 8, 16], 0.8, {cat: 0.9})})
    ((one,),) = seen.detect(torch.zeros(1, 3, 128, 64))
    assert one.box == (16, 4, 32, 36)


# -- the detector ---------------------------------------------------------------------------------------------------


def test_contract(file: Path) -> None:
    seen = detector(file, score=0.2)
    assert all(seen.detect(pictures()))
    check_detector(seen, pictures())


def test_more_threads_see_the_same(file: Path) -> None:
    images = pictures(64, 64)
    assert detector(file, score=0.2).detect(images) == detector(file, score=0.2, threads=2).detect(images)


def test_the_file_is_recorded(file: Path, tmp_path: Path) -> None:
    reward = GenEvalReward(GenEvalOptions(colors=None), device=CPU, detector=detector(file))
    recorded = reward.provenance()
    assert recorded == {
        "score": 0.3,
        "counting": 0.5,
        "per_class": 16,
        "overlap": 0.45,
        "file": "tiny.onnx",
        "digest": detector(file).digest,
    }
    weights = tmp_path / "clip.bin"
    weights.write_bytes(b"weights")
    version = metadata.version("open_clip_torch")
    for pretrained, named in (
        (str(weights), f"clip.bin sha256:{hashlib.sha256(b'weights').hexdigest()}"), ("openai", "openai")
    ):  # fmt: skip
        options = GenEvalOptions.model_validate({"colors": {"pretrained": pretrained}})
        colored = GenEvalReward(options, device=CPU, detector=detector(file))
        assert colored.provenance() == recorded | {"colors": f"ViT-L-14 {named}, open_clip {version}"}
    mine = GenEvalReward(GenEvalOptions(), device=CPU, detector=detector(file), color_classifier=lambda *_: [])
    assert mine.provenance() == recorded, "not that of the options"
    other = detector(make_tiny_yolox(tmp_path / "tiny.onnx", seed=1))
    assert other.digest != recorded["digest"]
    assert make_tiny_yolox(tmp_path / "again.onnx").read_bytes() == file.read_bytes()


def test_published_weights(test_data: Path) -> None:
    seen = detector(test_data / "yolox_nano.onnx", score=0.01)
    assert seen.side == (416, 416)
    check_detector(seen, pictures(50, 70, count=2))


# -- files that are something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, r"file\.onnx does not exist"),
        (lambda path: path.mkdir(), r"file\.onnx is a directory; expected an \.onnx file"),
        (lambda path: path.write_bytes(b""), r"file\.onnx"),
        (lambda path: path.write_bytes(b"nothing of the kind"), r"file\.onnx cannot be loaded: "),
        (
            lambda path: make_tiny_yolox(path, classes=20),
            r"\[1, 84, 25\].*expected one of \[1, 84, 85\], .* 80 classes",
        ),
        (lambda path: make_tiny_yolox(path, side=48), r"\[1, 3, 48, 48\].*sides fixed to multiples of 32"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    make(tmp_path / "file.onnx")
    with pytest.raises(UserError, match=f"^detector yolox: file: .*{words}"):
        detector(tmp_path / "file.onnx")


def test_without_onnxruntime_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'dgpo-geneval\[yolox\]'"):
        detector(file)
