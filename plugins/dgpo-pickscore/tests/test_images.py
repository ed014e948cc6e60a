"""The tensor path against PIL and transformers' own image processor; what cannot be seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import dgpo_pickscore.images as pictures_module
from dgpo_core.media.images import to_image
from dgpo_pickscore.examples import photograph
from dgpo_pickscore.images import OPENAI_MEAN as MEAN
from dgpo_pickscore.images import OPENAI_STD as STD
from dgpo_pickscore.images import Preprocessing, frames_of, unreadable

CONFIG: dict[str, Any] = {"size": 224, "crop_size": 224, "image_mean": MEAN, "image_std": STD, "resample": 3}


def picture(height: int, width: int) -> Tensor:
    """A piece of the photograph if it is large enough, else noise; in levels of 8 bits."""
    whole = photograph()
    if height <= whole.shape[1] and width <= whole.shape[2] and min(height, width) > 30:
        return whole[:, :height, :width].contiguous()
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height * width))
    return (noise * 255).round() / 255


def as_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def levels(pixels: Tensor) -> Tensor:
    """Normalized pixels back in levels of 8 bits."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return (pixels * std + mean) * 255


SIZES = [(224, 224), (512, 512), (606, 512), (300, 511), (224, 301), (225, 224), (97, 64), (64, 64), (7, 5), (1, 1),
         (2, 1), (40, 1), (1, 40), (900, 31), (2000, 3), (700, 300), (300, 700), (1125, 225), (97, 40)]  # fmt: skip


@pytest.mark.parametrize("side", [224, 32])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("interpolation", [2, 3])
def test_it_agrees_with_pil(height: int, width: int, side: int, interpolation: int) -> None:
    """The published path: 8-bit image, PIL's resize, center crop, normalized."""
    config = CONFIG | {"size": side, "crop_size": side, "resample": interpolation}
    image = picture(height, width)
    ours = Preprocessing.from_config(config)(image[None])
    theirs = CLIPImageProcessorPil(**config)(as_pil(image), return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape == (1, 3, side, side)
    assert ours.dtype == torch.float32
    assert levels(ours).round().equal(levels(theirs).round())
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def squashed(image: Image.Image, height: int, width: int, interpolation: str) -> Tensor:
    """Levels [3, height, width] as made here."""
    preprocessing = Preprocessing((height, width), (height, width), (0.0,) * 3, (1.0,) * 3, interpolation)  # type: ignore[arg-type]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return (preprocessing(pixels)[0] * 255).round().byte()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8))


def array(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


SHAPES = {"tall": (5, 1), "a little tall": (9, 4), "wide": (1, 5), "square": (1, 1)}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_is_that_of_pil(shape: str, interpolation: str) -> None:
    """Noise, in which every rounding shows, of twelve sizes of each shape made smaller and larger: all levels equal."""
    draws = np.random.default_rng(len(shape))
    for unit in [1, 2, 3, *draws.integers(4, 120, 9)]:
        before = (int(unit) * SHAPES[shape][0], int(unit) * SHAPES[shape][1])
        after = (int(draws.integers(1, 120)), int(draws.integers(1, 120)))
        image = noise(*before)
        theirs = image.resize(after[::-1], getattr(Image.Resampling, interpolation.upper()))
        assert squashed(image, *after, interpolation).equal(array(theirs)), (before, after)


@pytest.mark.parametrize(("height", "width"), [(1, 3000), (3000, 1), (1, 1), (2048, 1100)])
def test_every_level_of_extreme_sizes(height: int, width: int) -> None:
    image = noise(height, width)
    theirs = image.resize((224, 224), Image.Resampling.BICUBIC)
    assert squashed(image, 224, 224, "bicubic").equal(array(theirs))


@pytest.mark.parametrize(
    ("version", "before", "after", "columns_first"),
    [
        ((12, 1), (303, 3), (60, 5), False),
        ((12, 2), (303, 3), (60, 5), True),
        ((12, 3), (303, 3), (400, 5), False),
        ((12, 3), (300, 3), (60, 5), False),
        ((12, 3), (200, 90), (40, 30), False),
        ((13, 0), (200, 90), (40, 30), True),
        ((13, 0), (160, 90), (40, 30), False),
        ((13, 0), (41, 30), (40, 60), True),
        ((13, 0), (40, 30), (40, 60), False),
    ],
)
def test_the_order_of_passes_is_that_of_the_version(
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    before: tuple[int, int],
    after: tuple[int, int],
    columns_first: bool,
) -> None:
    """Pillow itself, a pass at a time; its source says which comes first (Resample.c of 13.0, Image.resize of 12.2)."""
    monkeypatch.setattr(pictures_module, "PILLOW", version)
    image = noise(*before)
    between = (before[1], after[0]) if columns_first else (after[1], before[0])
    theirs = image.resize(between, Image.Resampling.BICUBIC).resize(after[::-1], Image.Resampling.BICUBIC)
    assert squashed(image, *after, "bicubic").equal(array(theirs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_sample_and_its_png_are_the_same(dtype: torch.dtype) -> None:
    """Above all values halfway between two levels and their neighbors, which every precision rounds in its own way."""
    halves = (torch.arange(255) + 0.5) / 255
    ends = torch.tensor([0.0, 1.0])
    values = torch.cat([halves, halves.nextafter(ends[1]), halves.nextafter(ends[0]), torch.linspace(0, 1, 3331)])
    sample = values.to(dtype).reshape(1, 1, 64, 64).repeat(1, 3, 1, 1)
    preprocessing = Preprocessing.from_config(CONFIG | {"size": 64, "crop_size": 64})
    png = array(to_image(sample[0])).float() / 255
    assert preprocessing(sample).equal(preprocessing(png[None]))


@pytest.mark.parametrize("size", [{"height": 40, "width": 40}, {"height": 32, "width": 48}])
def test_sizes_without_ratio(size: dict[str, int]) -> None:
    config = CONFIG | {"size": size, "crop_size": size}
    image = picture(300, 200)
    ours = Preprocessing.from_config(config)(image[None])
    theirs = CLIPImageProcessorPil(**config)(as_pil(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_a_crop_larger_than_the_image_gets_a_black_rim() -> None:
    config = CONFIG | {"size": {"shortest_edge": 33}, "crop_size": {"height": 40, "width": 40}}
    image = picture(33, 33)
    ours = levels(Preprocessing.from_config(config)(image[None]))[0]
    theirs = CLIPImageProcessorPil(**config)(as_pil(image), return_tensors="pt")["pixel_values"][0]
    assert ours.round().equal(levels(theirs).round())
    assert ours[:, 4:37, 4:37].round().equal((image * 255).round())
    assert ours[:, :4].round().abs().max() == ours[:, 37:].round().abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_media(dtype: torch.dtype) -> None:
    image = picture(50, 60)[None]
    preprocessing = Preprocessing.from_config(CONFIG | {"size": 32, "crop_size": 32})
    found, expected = preprocessing(image.to(dtype)), preprocessing(image)
    assert found.dtype == torch.float32
    limit = 1.5 if dtype == torch.bfloat16 else 1
    assert (levels(found) - levels(expected)).abs().max() <= limit


def test_a_image_does_not_depend_on_its_neighbors() -> None:
    images = torch.stack([picture(70, 90), picture(80, 100)[:, 5:75, 5:95], torch.zeros(3, 70, 90)])
    preprocessing = Preprocessing.from_config(CONFIG)
    together = preprocessing(images)
    for i in range(3):
        assert preprocessing(images[i : i + 1]).equal(together[i : i + 1])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": False}, "do_center_crop is false"),
        ({"do_normalize": False}, "do_normalize is false"),
        ({"do_rescale": False}, "do_rescale is false"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0; it must be 1/255"),
        ({"resample": 1}, "resample is 1; allowed are 2"),
        ({"image_mean": None}, "image_mean is missing"),
        ({"image_std": [0.5, 0.5]}, "unpack"),
        ({"size": None}, "size is missing"),
    ],
)
def test_what_a_configuration_may_not_say(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Preprocessing.from_config(CONFIG | change)


def test_frames() -> None:
    video = torch.rand(2, 9, 3, 4, 4)
    assert frames_of(video, 4).equal(video[:, [0, 4, 8]])
    assert frames_of(video[:, :3], 4).equal(video[:, :1])
    assert frames_of(video[:, 0], 4).equal(video[:, :1])


@pytest.mark.parametrize("media", [torch.zeros(3, 4, 4), torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4).byte()])
def test_what_are_no_media(media: Tensor) -> None:
    with pytest.raises(ValueError, match="media must be float"):
        frames_of(media, 1)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (-0.1, r"from -0.1 to 0.5, outside \[0, 1\]"),
        (255.0, r"from 0.5 to 255, outside \[0, 1\]"),
        (1.0005, None),
        (-0.0005, None),
    ],
)
def test_one_value_decides(value: float, problem: str | None) -> None:
    frames = torch.full((3, 2, 3, 4, 4), 0.5)
    frames[1, 1, 2, 3, 3] = value
    reasons = unreadable(frames)
    assert reasons[0] is reasons[2] is None
    if problem is None:
        assert reasons[1] is None
    else:
        assert reasons[1] is not None
        import re

        assert re.search(problem, reasons[1])


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((2, 1, 3, 0, 5), "no pixels: it is 5 x 0"),
        ((2, 1, 3, 5, 0), "no pixels: it is 0 x 5"),
        ((2, 0, 3, 5, 5), "no frames"),
        ((2, 1, 3, 1, 1), None),
    ],
)
def test_sizes_that_cannot_be_seen(shape: tuple[int, ...], problem: str | None) -> None:
    for reason in unreadable(torch.zeros(shape)):
        assert reason is None if problem is None else problem in str(reason)


def test_very_long_images_cost_little() -> None:
    """Only what the crop shows is ever made; here the whole would be 224 x 22,400,000."""
    found = Preprocessing.from_config(CONFIG)(torch.full((1, 3, 1, 100_000), 0.2))
    assert levels(found).round().unique().tolist() == [51]


def test_the_photograph() -> None:
    found = photograph()
    assert found.shape == (3, 600, 512)
    assert found.dtype == torch.float32
    assert 0 <= found.min() < 0.1
    assert 0.9 < found.max() <= 1
    assert np.isclose(found.mean(), 0.47, atol=0.2)
