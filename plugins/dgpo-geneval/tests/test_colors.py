"""What the color classifier shows the image encoder, against Pillow; how it batches and caches, with an encoder that
only sees tones. Tests with open_clip itself are in `open_clip/`."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval import colors
from dgpo_geneval.colors import OpenClipColors, cut_out, pixel_box, rgb, to_square
from dgpo_geneval.detector import Detection, Detector
from dgpo_geneval.metadata import COLORS
from dgpo_geneval.options import ColorOptions, GenEvalOptions
from dgpo_geneval.reward import GenEvalReward

CPU = torch.device("cpu")
TONES = dict(zip(COLORS, torch.eye(10)[:, :3] * 0, strict=True)) | {
    "red": torch.tensor([0.9, 0.1, 0.1]),
    "green": torch.tensor([0.1, 0.7, 0.1]),
    "blue": torch.tensor([0.1, 0.1, 0.9]),
    "yellow": torch.tensor([0.9, 0.9, 0.1]),
    "white": torch.tensor([1.0, 1.0, 1.0]),
}


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """8 bits of smooth noise."""
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (fine * 255).round() / 255


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)


# -- what the encoder is shown --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.tuples(*[st.floats(0, 1)] * 4))
def test_boxes_are_cut_as_pillow_cuts(corners: tuple[float, float, float, float]) -> None:
    image = picture(23, 31)
    x0, x1 = sorted(31 * x for x in corners[:2])
    y0, y1 = sorted(23 * y for y in corners[2:])
    found = cut_out(image, Detection("dog", 0.9, (x0, y0, x1, y1)), rgb("#999", CPU), crop=True)
    if round(x0) < round(x1) and round(y0) < round(y1):
        torch.testing.assert_close(found, as_tensor(as_pil(image).crop((x0, y0, x1, y1))))
    else:
        assert min(found.shape[1:]) >= 1  # Pillow would cut nothing at all


def test_boxes_stay_in_the_image() -> None:
    assert pixel_box((-3.0, 5.2, 400.0, 5.3), 20, 30) == (0, 5, 30, 6)
    assert pixel_box((30.0, 20.0, 30.0, 20.0), 20, 30) == (29, 19, 30, 20)


@pytest.mark.parametrize("crop", [True, False])
def test_the_ground_is_painted_as_pillow_paints_it(crop: bool) -> None:
    image = picture(20, 30)
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:15, 6:20] = np.tri(11, 14, dtype=bool)
    box = (6.0, 4.0, 20.0, 15.0)
    expected = Image.composite(as_pil(image), Image.new("RGB", (30, 20), "#999"), Image.fromarray(mask))
    expected = expected.crop(box) if crop else expected
    found = cut_out(image, Detection("dog", 0.9, box, mask=mask), rgb("#999", CPU), crop=crop)
    torch.testing.assert_close(found, as_tensor(expected))
    plain = cut_out(image, Detection("dog", 0.9, box, mask=mask), rgb("original", CPU), crop=crop)
    torch.testing.assert_close(plain, image[:, 4:15, 6:20] if crop else image)


@pytest.mark.parametrize(("mode", "resample"), [("bicubic", Image.BICUBIC), ("bilinear", Image.BILINEAR)])
@pytest.mark.parametrize("size", [(300, 200), (40, 90), (64, 64), (150, 151), (1, 1), (7, 200), (500, 3)])
def test_squares_are_pillows(size: tuple[int, int], mode: str, resample: Any) -> None:
    """As CLIP's preprocessing: the shorter edge to the side, the middle of the longer one. Up to Pillow's rounding to 8
    bits after rows and columns."""
    image = picture(*size)
    height, width = size
    short, long = min(size), max(size)
    edges = (64, int(64 * long / short)) if height <= width else (int(64 * long / short), 64)
    left, top = round((edges[1] - 64) / 2), round((edges[0] - 64) / 2)
    expected = as_pil(image).resize(edges[::-1], resample).crop((left, top, left + 64, top + 64))
    found = to_square(image, 64, mode=mode, squash=False)
    # Bicubic weights add up to 1, but their sizes to 1.3. What is very long is shortened first, which moves the grid by
    # a hair.
    atol = 1.2 / 255 if long < 8 * short else 3 / 255
    torch.testing.assert_close(found, as_tensor(expected), atol=atol, rtol=0)
    squashed = to_square(image, 64, mode=mode, squash=True)
    torch.testing.assert_close(squashed, as_tensor(as_pil(image).resize((64, 64), resample)), atol=1.2 / 255, rtol=0)


def test_a_line_costs_no_more_than_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of one row of pixels must not become an image of a hundred thousand columns."""
    sizes: list[int] = []
    real = torch.nn.functional.interpolate

    def spy(image: Tensor, size: tuple[int, int], **kw: Any) -> Tensor:
        sizes.append(size[0] * size[1])
        return real(image, size, **kw)

    monkeypatch.setattr(torch.nn.functional, "interpolate", spy)
    assert to_square(torch.rand(3, 1, 4096), 224, mode="bicubic", squash=False).shape == (3, 224, 224)
    assert sizes[0] < 50 * 224 * 224


def test_grounds() -> None:
    gray = rgb("#999", CPU)
    assert gray is not None
    assert torch.equal(gray, torch.full((3, 1, 1), 153 / 255))
    other = rgb("#0080fF", CPU)
    assert other is not None
    assert other.flatten().tolist() == pytest.approx([0, 128 / 255, 1])
    with pytest.raises(ValidationError, match="background"):
        ColorOptions(background="gray")


# -- batching, with an encoder of tones -----------------------------------------------------------------------------


class Tones:
    """Stands for a CLIP: embeds a text by the first color in it, and an image by the color that its middle is
    nearest to."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.texts: list[str] = []
        self.named = list(COLORS)

    def eval(self) -> Tones:
        return self

    def requires_grad_(self, on: bool) -> Tones:
        return self

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        assert normalize
        return torch.eye(10)[tokens]

    def encode_image(self, images: Tensor, normalize: bool) -> Tensor:
        assert normalize
        self.batches.append(len(images))
        middle = images[:, :, 14:18, 14:18].mean((2, 3)) * 0.5 + 0.5
        names = ["red", "green", "blue", "yellow", "white"]
        nearest = torch.cdist(middle, torch.stack([TONES[name] for name in names])).argmin(1)
        return torch.eye(10)[[COLORS.index(names[i]) for i in nearest]]

    def tokenize(self, texts: list[str]) -> Tensor:
        self.texts += texts
        firsts = [min((text.index(color), i) for i, color in enumerate(COLORS) if color in text)[1] for text in texts]
        return torch.tensor(firsts)


@pytest.fixture
def tones(monkeypatch: pytest.MonkeyPatch) -> Tones:
    model = Tones()
    seen = {
        "size": (32, 32),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    fake = SimpleNamespace(
        list_models=lambda: ["ViT-L-14"],
        list_pretrained_tags_by_model=lambda name: ["openai"],
        get_pretrained_cfg=lambda name, tag: {"quick_gelu": True},
        create_model=lambda name, **kw: model,
        get_tokenizer=lambda name: model.tokenize,
        get_model_preprocess_cfg=lambda model: seen,
    )
    monkeypatch.setitem(sys.modules, "open_clip", fake)
    return model


def scene(*spots: tuple[str, str]) -> tuple[Tensor, list[Detection]]:
    """A gray image with a colored spot for each (class, color), and their detections with masks."""
    image, found = torch.full((3, 40, 200), 0.3), []
    for i, (label, color) in enumerate(spots):
        rows, columns = slice(5, 35), slice(40 * i + 5, 40 * i + 35)
        image[:, rows, columns] = TONES[color].view(3, 1, 1)
        mask = np.zeros((40, 200), dtype=bool)
        mask[rows, columns] = True
        found.append(Detection(label, 0.9, (columns.start, 5.0, columns.stop, 35.0), mask=mask))
    return image, found


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_objects_go_through_the_encoder_with_those_of_their_image(tones: Tones, batch: int) -> None:
    """And with no others: what an encoder says of one varies, in its last bits, with how many there are."""
    scenes = [
        scene(("dog", "red"), ("cat", "blue"), ("dog", "green")),
        scene(),
        scene(("cat", "white")),
        scene(("car", "yellow"), ("dog", "white")),
    ]
    classify = OpenClipColors(ColorOptions(batch=batch), device=CPU)
    found = classify(torch.stack([image for image, _ in scenes]), [objects for _, objects in scenes])
    assert found == [["red", "blue", "green"], [], ["white"], ["yellow", "white"]]
    passes = {1: [1] * 6, 2: [2, 1, 1, 2], 64: [3, 1, 2]}[batch]
    assert tones.batches == passes
    assert classify(scenes[0][0][None], [[]]) == [[]]
    assert tones.batches == passes  # nothing to look at, nothing looked at


def test_texts_are_the_benchmarks(tones: Tones) -> None:
    OpenClipColors(ColorOptions(), device=CPU).weights("computer mouse")
    assert tones.texts[:3] == [
        "a photo of a red computer mouse",
        "a photo of a red-colored computer mouse",
        "a photo of a red object",
    ]
    assert len(tones.texts) == 30


def test_classes_are_embedded_once_and_the_oldest_are_forgotten(tones: Tones, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colors, "CACHED", 2)
    classify = OpenClipColors(ColorOptions(), device=CPU)
    for label, known in (("dog", 1), ("dog", 1), ("cat", 2), ("dog", 2), ("car", 3), ("dog", 3), ("cat", 4)):
        assert classify.weights(label).shape == (10, 10)
        assert len(tones.texts) == 30 * known


def test_many_threads_embed_a_class_once(tones: Tones) -> None:
    classify = OpenClipColors(ColorOptions(), device=CPU)
    threads = [threading.Thread(target=classify.weights, args=("dog",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tones.texts) == 30


def test_a_reward_loads_it_when_a_prompt_asks_for_a_color(tones: Tones) -> None:
    image, objects = scene(("dog", "red"), ("cat", "blue"))

    class Same(Detector):
        labels = ("dog", "cat")

        def detect(self, images: Tensor) -> list[list[Detection]]:
            return [objects for _ in images]

    def asks(tag: str, label: str, **more: str) -> Prompt:
        return Prompt("p", {"tag": tag, "include": [{"class": label, "count": 1, **more}]})

    reward = GenEvalReward(GenEvalOptions(), device=CPU, detector=Same(None, device=CPU))
    reward.check_prompts([asks("single_object", "dog")])
    assert reward._color_classifier is None
    prompts = [asks("colors", "dog", color="red"), asks("colors", "cat", color="red"), asks("single_object", "dog")]
    reward.check_prompts(prompts)
    assert isinstance(reward._color_classifier, OpenClipColors)
    assert reward.score(image.expand(3, -1, -1, -1), prompts).values.tolist() == [1, 0.5, 1]
    assert tones.batches == [1, 1]


def test_other_shapes_of_images_are_refused(tones: Tones, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    seen = open_clip.get_model_preprocess_cfg(tones) | {"resize_mode": "longest"}
    monkeypatch.setattr(open_clip, "get_model_preprocess_cfg", lambda model: seen)
    with pytest.raises(UserError, match=r"colors.model: ViT-L-14 requires images of \(32, 32\), longest"):
        OpenClipColors(ColorOptions(), device=CPU)


def test_without_open_clip_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match=r"pip install 'dgpo-geneval\[color\]'"):
        OpenClipColors(ColorOptions(), device=CPU)
