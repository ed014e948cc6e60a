"""Conversion of tensors to images: levels, channel order and invalid input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_ocr.images import enlarge, to_images


def test_levels_and_channel_order() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    media = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    images, fit = to_images(media, 1)
    assert fit == [True, True]
    assert images.shape == (2, 1, 5, 7, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images[:, 0], rgb[..., ::-1]), "every level is kept, in BGR"
    assert all(frame.flags.c_contiguous for sample in images for frame in sample)


def test_frames_are_sampled_from_the_first() -> None:
    video = (torch.arange(10) / 255).view(1, 10, 1, 1, 1).expand(1, 10, 3, 2, 2)
    for every, expected in ((1, list(range(10))), (4, [0, 4, 8]), (9, [0, 9]), (50, [0])):
        images, _ = to_images(video, every)
        assert images[0, :, 0, 0, 0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats(dtype: torch.dtype) -> None:
    media = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    images, fit = to_images(media, 1)
    assert images[0, 0, :, :, 0].flatten().tolist() == [0, 64, 128, 255]
    assert fit == [True]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.01, 1.01, 2.0])
def test_a_sample_out_of_range_is_invalid(value: float) -> None:
    media = torch.full((3, 3, 4, 4), 0.5)
    media[1, 2, 3, 1] = value
    images, fit = to_images(media, 1)
    assert fit == [True, False, True]
    assert (images[[0, 2]] == 128).all()


def test_images_of_the_published_rule_are_clamped_rgb() -> None:
    media = torch.tensor([-0.5, 0.25, 1.5, float("inf")]).view(1, 1, 2, 2).repeat(2, 3, 1, 1)
    media[0, 0] = 1.0
    media[1, 0, 0, 0] = torch.nan
    images, fit = to_images(media, 1, clamp=True, bgr=False)
    assert fit == [True, False]
    assert images[0, 0].tolist() == [[[255, 0, 0], [255, 64, 64]], [[255, 255, 255], [255, 255, 255]]]


def test_rounding_errors_are_in_range() -> None:
    assert to_images(torch.tensor([-1e-6, 1 + 1e-6, 0.5]).view(1, 3, 1, 1), 1)[1] == [True]


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ((2, 3), "got \\[2, 3\\]"),
        ((2, 1, 8, 8), "must be"),
        ((2, 8, 8, 3), "must be"),
        ((2, 4, 1, 8, 8), "must be"),
        ((2, 0, 3, 8, 8), "no pixels"),
        ((2, 3, 0, 8), "no pixels"),
        ((2, 3, 8, 0), "no pixels"),
    ],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        to_images(torch.zeros(shape), 4)


def test_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got torch.uint8"):
        to_images(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), 1)


def test_an_empty_batch() -> None:
    images, fit = to_images(torch.zeros(0, 3, 4, 4), 1)
    assert (len(images), fit) == (0, [])


@pytest.mark.parametrize(
    ("height", "width", "min_side", "factor"),
    [
        (32, 64, 64, 2),
        (64, 64, 64, 1),
        (63, 200, 64, 2),
        (1, 1, 64, 64),
        (20, 30, 64, 4),
        (1, 2000, 64, 2),
        (9, 9, 1, 1),
    ],
)
def test_small_images_are_enlarged(height: int, width: int, min_side: int, factor: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    enlarged, found = enlarge(image, min_side)
    assert found == factor
    assert enlarged.shape == (height * factor, width * factor, 3)
    back = Image.fromarray(enlarged).resize((width, height), Image.Resampling.BOX)
    assert abs(np.asarray(back).astype(float) - image).mean() < 32, "the content is the same"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_from_a_gpu() -> None:
    media = torch.rand(2, 6, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    on_cpu, on_gpu = to_images(media, 4), to_images(media.cuda(), 4)
    assert np.array_equal(on_cpu[0], on_gpu[0])
    assert on_cpu[1] == on_gpu[1]
