"""Statistics of media against loops over pixels, and alarms against cases written out."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dgpo_core.training.monitors import (
    PIXELWISE,
    STATISTICS,
    alarms,
    has_left,
    media_statistics,
    step_statistics,
    tolerance_of,
)
from dgpo_schemas import rules
from dgpo_schemas.metrics import EvaluationRecord, GroupScore

NAN, INF = math.nan, math.inf


def test_the_names_are_those_of_the_run_files_rules() -> None:
    assert tuple(STATISTICS) == rules.STATISTICS


# -- statistics -----------------------------------------------------------------------------------------------------


def luma(pixel: Sequence[float]) -> float:
    """ITU-R BT.601, as in colorsys' YIQ but not rounded to two digits."""
    red, green, blue = pixel
    return 0.299 * red + 0.587 * green + 0.114 * blue


def of_image(image: Tensor) -> dict[str, float]:
    """Pixel by pixel, of an image [3, H, W] in [0, 1]."""
    height, width = image.shape[1:]
    rows = [[image[:, y, x].tolist() for x in range(width)] for y in range(height)]
    saturation = edges = dark = 0.0
    for y in range(height):
        for x in range(width):
            here = rows[y][x]
            saturation += colorsys.rgb_to_hsv(*here)[1]
            dark += luma(here) < 0.1
            right = rows[y][x + 1] if x + 1 < width else here
            below = rows[y + 1][x] if y + 1 < height else here
            edges += any(abs(luma(here) - luma(other)) > 0.1 for other in (right, below))
    count = height * width
    return {"saturation": saturation / count, "edge_density": edges / count, "dark_pixels": dark / count}


def images(*shape: int, seed: int = 0) -> Tensor:
    """Noise of which some is black, some gray and some smooth, so that each statistic is far from 0 and from 1."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.rand(shape, generator=generator)
    made[..., : shape[-2] // 3, :] *= 0.2
    made[..., shape[-1] // 2 :] = made[..., :1, shape[-1] // 2 :]
    return made


def agree(found: dict[str, Tensor], expected: Sequence[dict[str, float]]) -> None:
    assert tuple(found) == PIXELWISE
    for name, values in found.items():
        assert values.dtype == torch.float32
        assert values.tolist() == pytest.approx([one[name] for one in expected], abs=1e-5), name


@pytest.mark.parametrize("shape", [(3, 3, 9, 12), (2, 3, 1, 7), (2, 3, 7, 1), (2, 3, 2, 2), (4, 3, 1, 1)])
def test_images_pixel_by_pixel(shape: tuple[int, ...]) -> None:
    media = images(*shape)
    agree(media_statistics(media), [of_image(one) for one in media])


def test_the_images_report_the_statistics_apart() -> None:
    (found,) = [of_image(one) for one in images(1, 3, 9, 12)]
    assert all(0.05 < value < 0.95 for value in found.values())
    assert len({round(value, 3) for value in found.values()}) == 3


def test_a_video_is_the_mean_of_its_frames() -> None:
    media = images(2, 5, 3, 6, 8)
    frames = [[of_image(frame) for frame in video] for video in media]
    expected = [{name: sum(f[name] for f in video) / len(video) for name in PIXELWISE} for video in frames]
    agree(media_statistics(media), expected)
    still = images(2, 3, 6, 8)
    agree(media_statistics(still.unsqueeze(1).expand(-1, 4, -1, -1, -1)), [of_image(one) for one in still])


@pytest.mark.parametrize(
    ("color", "saturation", "dark"),
    [
        ((0.0, 0.0, 0.0), 0.0, 1.0),
        ((1.0, 1.0, 1.0), 0.0, 0.0),
        ((0.5, 0.5, 0.5), 0.0, 0.0),
        ((1.0, 0.0, 0.0), 1.0, 0.0),
        ((0.0, 0.0, 0.8), 1.0, 1.0),  # pure blue is dark: a luma of 0.09
        ((0.8, 0.4, 0.4), 0.5, 0.0),
        ((0.002, 0.001, 0.001), 0.5, 1.0),  # saturation has no regard for brightness
    ],
)
def test_flat_colors(color: tuple[float, ...], saturation: float, dark: float) -> None:
    media = torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 5, 4)
    agree(media_statistics(media), [{"saturation": saturation, "edge_density": 0.0, "dark_pixels": dark}])


def test_edges_are_counted_once_at_their_left_and_upper_side() -> None:
    """A white square of 2 x 2 in a black image of 4 x 4: to its left 2, above 2; of its own, to the right 2 and at
    the bottom 2, one of them both. The last row and column look at no neighbor outside."""
    media = torch.zeros(1, 3, 4, 4)
    media[..., 1:3, 1:3] = 1.0
    assert media_statistics(media)["edge_density"].item() == pytest.approx((2 + 2 + 3) / 16)
    chequered = (torch.arange(4)[:, None] + torch.arange(4)) % 2
    found = media_statistics(chequered.expand(1, 3, 4, 4).float())["edge_density"].item()
    assert found == pytest.approx(15 / 16), "all but the last pixel, which has no neighbor to the right or below"


def test_what_is_no_color_is_clamped() -> None:
    media = torch.tensor([[2.0, INF, -1.0, -INF, NAN]]).view(1, 1, 1, 5).expand(1, 3, 1, 5).clone()
    clean = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    agree(media_statistics(media), [of_image(clean[0])])
    assert media.isnan().sum() == 3, "the media are left as they are"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision(dtype: torch.dtype) -> None:
    media = images(2, 3, 6, 8).to(dtype)
    agree(media_statistics(media), [of_image(one) for one in media.float()])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 2, 3, 4, 4), (2, 3, 0, 0), (2, 0, 3, 4, 4)])
def test_nothing_to_see(shape: tuple[int, ...]) -> None:
    found = media_statistics(torch.zeros(shape))
    assert {name: values.tolist() for name, values in found.items()} == dict.fromkeys(PIXELWISE, [0.0] * shape[0])


def test_a_sample_does_not_depend_on_the_others() -> None:
    media = images(5, 3, 6, 8)
    together = media_statistics(media)
    for i in range(5):
        alone = media_statistics(media[i : i + 1])
        assert {name: values[0].item() for name, values in alone.items()} == {
            name: values[i].item() for name, values in together.items()
        }


# -- few steps and many ---------------------------------------------------------------------------------------------


def of_steps(media: Tensor, many_step: Tensor) -> dict[str, float]:
    """Of one sample [..., 3, H, W], in numpy float64: every frame, pixel and pair of neighbors counts alike."""
    few, many = (np.asarray(one, dtype=np.float64) for one in (media, many_step))
    frames = many.reshape(-1, *many.shape[-3:])
    pairs = []
    for frame in frames:
        gray = [[luma(frame[:, y, x]) for x in range(frame.shape[2])] for y in range(frame.shape[1])]
        for y, row in enumerate(gray):
            for x, here in enumerate(row):
                pairs += [here - row[x + 1]] if x + 1 < len(row) else []
                pairs += [here - gray[y + 1][x]] if y + 1 < len(gray) else []
    return {
        "step_disagreement": float(np.sqrt(np.mean((few - many) ** 2))),
        "many_step_sharpness": float(np.sqrt(np.mean(np.square(pairs)))) if pairs else 0.0,
    }


@pytest.mark.parametrize(
    "shape", [(3, 3, 9, 12), (2, 3, 1, 7), (2, 3, 7, 1), (4, 3, 1, 1), (2, 5, 3, 6, 8), (1, 1, 3, 4, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_steps_and_many_pixel_by_pixel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    media, many_step = images(*shape).to(dtype), images(*shape, seed=1).to(dtype)
    found = step_statistics(media, many_step)
    assert list(found) == ["step_disagreement", "many_step_sharpness"]
    for name, values in found.items():
        assert values.dtype == torch.float32
        expected = [of_steps(one, other)[name] for one, other in zip(media, many_step, strict=True)]
        assert values.tolist() == pytest.approx(expected, abs=1e-6), name


def test_disagreement_is_of_the_samples_and_sharpness_of_the_many_step_ones() -> None:
    """A chequered board against a gray one, half a unit away everywhere."""
    chequered = ((torch.arange(4)[:, None] + torch.arange(4)) % 2).expand(1, 3, 4, 4).float()
    gray = torch.full((1, 3, 4, 4), 0.5)
    for media, many_step, sharpness in ((chequered, gray, 0.0), (gray, chequered, 1.0), (chequered, chequered, 1.0)):
        found = {name: value.item() for name, value in step_statistics(media, many_step).items()}
        assert found["step_disagreement"] == (0.0 if media is many_step else 0.5)
        assert found["many_step_sharpness"] == pytest.approx(sharpness)


def test_blur_lowers_sharpness_and_noise_raises_it() -> None:
    smooth = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    wave = 0.5 + 0.4 * (torch.arange(16) * 0.8).sin().expand(1, 3, 16, 16)
    blurred = torch.nn.functional.avg_pool2d(wave, 3, 1, 1, count_include_pad=False)
    noisy = wave + 0.1 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sharpness = [step_statistics(one, one)["many_step_sharpness"].item() for one in (smooth, blurred, wave, noisy)]
    assert sharpness == sorted(sharpness)


def test_steps_of_what_is_no_color_are_clamped() -> None:
    """A model that has diverged decodes to anything; the log knows no nan."""
    wrong = torch.tensor([[2.0, INF, -1.0, -INF, NAN]]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    clean = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    for name, value in step_statistics(wrong, wrong.flip(-1)).items():
        assert value.tolist() == pytest.approx([of_steps(clean[0], clean[0].flip(-1))[name]]), name


# -- tolerances
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "role", "first", "tolerances", "expected"),
    [
        ("aesthetic", "monitor", 5.0, {}, 0.0),  # any fall beyond the intervals
        ("aesthetic", "monitor", 5.0, {"aesthetic": 0.3}, 0.3),
        ("aesthetic", "monitor", 5.0, {"other": 0.3}, 0.0),
        ("diversity", "statistic", 0.4, {}, 0.1),  # a quarter
        ("saturation", "statistic", 0.4, {}, 0.2),  # half
        ("edge_density", "statistic", 0.3, {}, 0.15),
        ("dark_pixels", "statistic", 0.0, {}, 0.05),  # of nothing there is no share
        ("saturation", "statistic", 0.02, {}, 0.05),
        ("saturation", "statistic", 0.4, {"saturation": 0.01}, 0.01),
        ("saturation", "statistic", 0.4, {"saturation": 0.0}, 0.0),
    ],
)
def test_tolerances(name: str, role: str, first: float, tolerances: dict[str, float], expected: float) -> None:
    assert tolerance_of(name, role, first, tolerances) == pytest.approx(expected)


def score(value: float, half: float = 0.02) -> GroupScore:
    return GroupScore(value=value, low=value - half, high=value + half, n=9)


@pytest.mark.parametrize(
    ("name", "was", "now", "tolerance", "expected"),
    [
        ("aesthetic", score(0.5), score(0.45), 0.0, True),
        ("aesthetic", score(0.5), score(0.55), 0.0, False),  # a reward that monitors may rise
        ("aesthetic", score(0.5), score(0.45), 0.1, False),  # within the tolerance
        ("aesthetic", score(0.5), score(0.39), 0.1, True),
        ("aesthetic", score(0.5), score(0.47), 0.0, False),  # the intervals overlap
        ("aesthetic", score(0.5), score(0.3, half=0.5), 0.1, False),
        ("aesthetic", score(0.5), score(0.5), 0.0, False),
        ("diversity", score(0.5), score(0.3), 0.1, True),
        ("diversity", score(0.5), score(0.9), 0.1, False),  # more of it is no sign of hacking
        ("saturation", score(0.5), score(0.9), 0.1, True),
        ("saturation", score(0.5), score(0.1), 0.1, True),
        ("saturation", score(0.5), score(0.57), 0.1, False),
        ("saturation", score(0.5), score(0.9, half=0.4), 0.1, False),
        ("edge_density", score(0.2), score(0.4), 0.1, True),
        ("dark_pixels", score(0.2), score(0.05), 0.1, True),
    ],
)
def test_what_has_left_its_tolerance(
    name: str, was: GroupScore, now: GroupScore, tolerance: float, expected: bool
) -> None:
    assert has_left(name, was, now, tolerance) is expected


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.3), st.floats(0, 0.3))
def test_the_two_directions_mirror_each_other(a: float, b: float, tolerance: float, half: float, other: float) -> None:
    """What is a rise one way round is a fall the other way round."""
    was, now = score(a, half), score(b, other)
    assert has_left("saturation", was, now, tolerance) == (
        has_left("diversity", was, now, tolerance)
        or has_left("diversity", score(-a, half), score(-b, other), tolerance)
    )


# -- alarms ---------------------------------------------------------------------------------------------------------


def evaluation(iteration: int, target: float = 0.5, half: float = 0.02, **others: float) -> list[EvaluationRecord]:
    """One evaluation: the target, then monitors and statistics by name."""
    roles = {"target": "target"} | {name: "statistic" if name in STATISTICS else "monitor" for name in others}
    return [
        EvaluationRecord.model_validate(
            {"iteration": iteration, "model": "ema", "reward": name, "role": roles[name], "value": value,
             "low": value - half, "high": value + half, "n": 9, "missing": 0, "groups": {}}
        )
        for name, value in {"target": target, **others}.items()
    ]  # fmt: skip


def alarmed(*evaluations: list[EvaluationRecord], **tolerances: float) -> list[str]:
    return [alarm.monitor for alarm in alarms([r for one in evaluations for r in one], tolerances)]


def test_the_target_rose_and_the_monitor_fell() -> None:
    (alarm,) = alarms([*evaluation(0, aesthetic=5.0), *evaluation(40, 0.7, aesthetic=4.25)], {})
    assert (alarm.iteration, alarm.target, alarm.monitor, alarm.tolerance) == (40, "target", "aesthetic", 0.0)
    assert (alarm.target_change, alarm.monitor_change) == ((0.5, 0.7), (5.0, 4.25))
    assert str(alarm) == (
        "alarm after iteration 40: target rose from 0.500 to 0.700 while aesthetic fell from 5.000 to 4.250 "
        "(tolerance 0.000): a sign of reward hacking; look at the images"
    )


def test_a_statistic_may_leave_its_tolerance_upwards() -> None:
    (alarm,) = alarms([*evaluation(0, saturation=0.4), *evaluation(3, 0.7, saturation=0.9)], {"saturation": 0.25})
    assert "saturation rose from 0.400 to 0.900 (tolerance 0.250)" in str(alarm)


@pytest.mark.parametrize("target", [0.5, 0.4])
def test_without_a_rise_of_the_target_there_is_nothing_to_suspect(target: float) -> None:
    assert alarmed(evaluation(0, aesthetic=5.0), evaluation(2, target, aesthetic=1.0)) == []
    assert alarmed(evaluation(0, aesthetic=5.0), evaluation(2, 0.500001, aesthetic=1.0)) == ["aesthetic"]


def test_tolerances_are_followed() -> None:
    both = evaluation(0, aesthetic=5.0, saturation=0.4), evaluation(2, 0.7, aesthetic=4.5, saturation=0.7)
    assert alarmed(*both) == ["aesthetic", "saturation"]
    assert alarmed(*both, aesthetic=0.6) == ["saturation"]
    assert alarmed(*both, aesthetic=0.4, saturation=0.35) == ["aesthetic"]
    assert alarmed(*both, aesthetic=0.6, saturation=0.35) == []


def test_noise_raises_no_alarm() -> None:
    assert alarmed(evaluation(0, half=0.3, aesthetic=5.0), evaluation(2, 0.7, half=0.3, aesthetic=4.5)) == []
    assert alarmed(evaluation(0, half=0.2, aesthetic=5.0), evaluation(2, 0.7, half=0.2, aesthetic=4.5)) == ["aesthetic"]


def test_the_last_evaluation_is_compared_with_the_first() -> None:
    first, fallen, well = (evaluation(i, t, aesthetic=a) for i, t, a in ((0, 0.5, 5.0), (2, 0.9, 1.0), (4, 0.7, 5.1)))
    assert alarmed(first, fallen) == ["aesthetic"]
    assert alarmed(first, fallen, well) == [], "it has come back"
    assert alarmed(first, well, fallen) == [], "fallen is the earlier one, whatever the order"
    slowly = [evaluation(2 * i, 0.5 + 0.1 * i, aesthetic=5.0 - 0.03 * i) for i in range(4)]
    assert alarmed(*slowly) == ["aesthetic"], "no step is beyond the intervals, all of them together are"
    assert alarmed(*slowly[1:3]) == []


def test_one_evaluation_or_none() -> None:
    assert alarms([], {}) == []
    assert alarmed(evaluation(0, aesthetic=5.0, diversity=0.1)) == []


def test_the_first_target_decides_and_targets_are_no_monitors() -> None:
    def two(iteration: int, target: float, second: float) -> list[EvaluationRecord]:
        first, other = evaluation(iteration, target, second=second)
        return [first, other.model_copy(update={"role": "target"})]

    assert alarmed(two(0, 0.5, 0.5), two(2, 0.9, 0.1)) == []
    assert alarmed([*two(0, 0.5, 0.5), *evaluation(0, aesthetic=5.0)[1:]],
                   [*two(2, 0.1, 0.9), *evaluation(2, aesthetic=1.0)[1:]]) == []  # fmt: skip


def test_a_monitor_without_a_first_value_is_left_out() -> None:
    assert alarmed(evaluation(0), evaluation(2, 0.9, aesthetic=1.0)) == []
