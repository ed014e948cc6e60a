"""The color classifier against open_clip's own preprocessing and zero-shot classifier, on tiny random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Prompt
from dgpo_geneval.colors import OpenClipColors
from dgpo_geneval.detector import Detection
from dgpo_geneval.metadata import COLORS
from dgpo_geneval.options import ColorOptions
from dgpo_kit.contracts import check_reward
from dgpo_schemas.base import UseBlock

CPU = torch.device("cpu")
LABELS = ("car", "computer mouse", "wine glass")


@pytest.fixture(scope="module")
def classify(tiny_clip: ColorOptions) -> OpenClipColors:
    return OpenClipColors(tiny_clip, device=CPU)


@pytest.fixture(scope="module")
def transform(classify: OpenClipColors) -> Any:
    """open_clip's own, for Pillow's images."""
    cfg = PreprocessCfg(**open_clip.get_model_preprocess_cfg(classify.model))
    return image_transform_v2(cfg, is_train=False)


def pictures(count: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    fine = torch.nn.functional.interpolate(coarse, (90, 120), mode="bicubic").clamp(0, 1)
    return (fine * 255).round() / 255


def objects(count: int, seed: int = 0) -> list[list[Detection]]:
    """Elliptic masks of many sizes, three to an image; of every third there is a box alone."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:90, :120]
    found = []
    for _ in range(count):
        one = []
        for place in range(3):
            cx, cy, rx, ry = rng.uniform((20, 20, 4, 4), (100, 70, 20, 20))
            mask = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            rows, columns = np.nonzero(mask)
            box = tuple(float(e) for e in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            one.append(Detection(LABELS[place], 0.9, box, mask=None if place == 2 else mask))  # type: ignore[arg-type]
        found.append(one)
    return found


def shown(images: Tensor, detections: list[list[Detection]], background: str, crop: bool) -> Iterator[Image.Image]:
    """What the benchmark's program shows, with Pillow."""
    for image, one in zip(images, detections, strict=True):
        pixels = Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
        blank = pixels.copy() if background == "original" else Image.new("RGB", pixels.size, background)
        for d in one:
            out = pixels if d.mask is None else Image.composite(pixels, blank, Image.fromarray(d.mask))
            yield out.crop(d.box) if crop else out


@pytest.mark.parametrize("background", ["#999", "#102030", "original"])
@pytest.mark.parametrize("crop", [True, False])
def test_the_encoder_sees_what_open_clips_own_preprocessing_shows(
    tiny_clip: ColorOptions, transform: Any, background: str, crop: bool
) -> None:
    own = OpenClipColors(tiny_clip.model_copy(update={"background": background, "crop": crop}), device=CPU)
    images, found = pictures(4), objects(4)
    expected = torch.stack([transform(picture) for picture in shown(images, found, background, crop)])
    seen = torch.cat([own._crops(image, one) for image, one in zip(images, found, strict=True)])
    assert seen.shape == expected.shape == (12, 3, 56, 56)
    # Pillow rounds to 8 bits after rows and columns: see `test_colors`.
    torch.testing.assert_close(seen, expected, atol=1.2 / 255 / 0.26, rtol=0)
    assert (seen - expected).abs().mean() < 0.35 / 255 / 0.26


def test_the_same_colors_as_the_benchmarks_program(classify: OpenClipColors, transform: Any) -> None:
    """Its loop, one object at a time, against all at once; where two colors are all but equally likely, either."""
    images, found = pictures(6), objects(6, seed=3)
    model, tokenizer = classify.model, classify.tokenizer
    names = [name for one in classify(images, found) for name in one]
    flat = [detection for one in found for detection in one]
    clear = 0
    for name, detection, picture in zip(names, flat, shown(images, found, "#999", True), strict=True):
        templates = [
            f"a photo of a {{}} {detection.label}",
            f"a photo of a {{}}-colored {detection.label}",
            "a photo of a {} object",
        ]
        weights = open_clip.build_zero_shot_classifier(model, tokenizer, list(COLORS), templates)
        with torch.no_grad():
            logits = (model.encode_image(transform(picture)[None], normalize=True) @ weights)[0]
        best, second = logits.topk(2).values.tolist()
        if best - second > 1e-3:
            clear += 1
            assert name == COLORS[int(logits.argmax())]
    assert clear > len(flat) // 2


@pytest.mark.parametrize("label", LABELS)
def test_text_weights_are_open_clips(classify: OpenClipColors, label: str) -> None:
    templates = [f"a photo of a {{}} {label}", f"a photo of a {{}}-colored {label}", "a photo of a {} object"]
    expected = open_clip.build_zero_shot_classifier(classify.model, classify.tokenizer, list(COLORS), templates)
    torch.testing.assert_close(classify.weights(label), expected)


def test_colors_do_not_depend_on_the_others(classify: OpenClipColors) -> None:
    images, found = pictures(5), objects(5)
    together = classify(images, found)
    assert [classify(images[i : i + 1], [found[i]])[0] for i in range(5)] == together
    assert len({name for one in together for name in one}) > 1


def test_loading_leaves_the_random_state_alone(tiny_clip: ColorOptions) -> None:
    before = torch.get_rng_state()
    OpenClipColors(tiny_clip, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_reward_by_name_with_detector_and_classifier(tiny_clip: ColorOptions, tiny_mask2former: Path) -> None:
    detector = {"use": "mask2former", "options": {"checkpoint": str(tiny_mask2former), "side": 64, "score": 0.05}}
    options = {"detector": detector, "colors": tiny_clip.model_dump()}
    reward = get_registry().create("reward", UseBlock(use="geneval", options=options), device=CPU)
    reward.detector.examples = lambda: ()  # random weights know nobody
    images = pictures(4)
    labels = [one[0].label for one in reward.detector.detect(images)]
    prompts = [
        Prompt("p", {"tag": "colors", "include": [{"class": label, "count": 1, "color": color}]})
        for label, color in zip(labels, COLORS, strict=False)
    ]
    check_reward(reward, images, prompts)
    scores = reward.score(images, prompts)
    assert not scores.missing.any()
    assert all(d["details"][0]["colors"][0] in COLORS for d in scores.diagnostics)


# -- what can be wrong ----------------------------------------------------------------------------------------------


def test_weights_that_lack_something_are_refused(tiny_clip: ColorOptions, tmp_path: Path) -> None:
    state = torch.load(tiny_clip.pretrained, weights_only=True)
    del state["visual.conv1.weight"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(UserError, match=r"colors.pretrained: .*less.pt for tiny-clip cannot be loaded: .*visual.conv1"):
        OpenClipColors(tiny_clip.model_copy(update={"pretrained": str(tmp_path / "less.pt")}), device=CPU)


def test_names_that_open_clip_does_not_know() -> None:
    with pytest.raises(UserError, match=r"colors.model: unknown open_clip model 'ViT-L-15'"):
        OpenClipColors(ColorOptions(model="ViT-L-15"), device=CPU)
    with pytest.raises(UserError, match="no such file or open_clip tag; tags of this model: openai, "):
        OpenClipColors(ColorOptions(pretrained="openay"), device=CPU)


def test_without_a_network_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kw: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", unreachable)
    words = "colors.pretrained: openai for ViT-L-14 cannot be loaded: .*no route to host"
    with pytest.raises(UserError, match=words):
        OpenClipColors(ColorOptions(), device=CPU)


@pytest.mark.parametrize(("pretrained", "quick"), [("openai", True), ("laion2b_s32b_b82k", False)])
def test_openais_weights_get_openais_activation(monkeypatch: pytest.MonkeyPatch, pretrained: str, quick: bool) -> None:
    """open_clip itself would build them with another one, and only warn."""
    asked: dict[str, Any] = {}

    def stop(name: str, **kw: Any) -> None:
        asked.update(kw)
        raise RuntimeError("far enough")

    monkeypatch.setattr(open_clip, "create_model", stop)
    with pytest.raises(UserError, match="far enough"):
        OpenClipColors(ColorOptions(pretrained=pretrained), device=CPU)
    assert (asked["pretrained"], asked["force_quick_gelu"], asked["require_pretrained"]) == (pretrained, quick, True)
