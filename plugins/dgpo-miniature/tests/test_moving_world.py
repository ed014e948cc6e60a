"""Rendered clips against their parameters, and the detector."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from dgpo_miniature.moving.captions import all_captions, corrupt
from dgpo_miniature.moving.detector import find_motion
from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES
from dgpo_miniature.moving.world import FRAMES, RGB, SIZE, STEPS, Clips, random_clips, render


def every_content(seed: int = 0, times: int = 1) -> Clips:
    """Return each of the 48 contents, `times` times."""
    contents = [(SHAPES.index(c.shape), COLORS.index(c.color), DIRECTIONS.index(c.direction)) for c in all_captions()]
    return random_clips(*np.array(contents * times).T, np.random.default_rng(seed))


def test_clips_match_their_parameters() -> None:
    clips = every_content()
    videos = render(clips)
    assert videos.shape == (48, FRAMES, 3, SIZE, SIZE)
    assert videos.dtype == np.float32
    assert 0 <= videos.min() <= videos.max() <= 1
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    ground = clips.ground[:, None, :, None, None]
    cover = np.abs(videos - ground).sum(2)
    centers = np.stack([(cover * x).sum((2, 3)), (cover * y).sum((2, 3))], -1) / cover.sum((2, 3))[..., None]
    # The center of mass moves in a straight line, with the clip's speed and direction; nothing is cropped at the edge.
    step = STEPS[clips.direction] * clips.speed[:, None]
    assert np.allclose(np.diff(centers, axis=1), step[:, None], atol=0.1)
    row, column = np.rint(centers[:, 2, ::-1].T - 0.5).astype(int)
    assert np.allclose(videos[np.arange(48), 2, :, row, column], RGB[clips.color], atol=1e-5)
    mass = cover.sum((2, 3))
    assert np.allclose(mass, mass.mean(1, keepdims=True), rtol=0.03)


def test_the_same_key_gives_the_same_clips() -> None:
    assert np.array_equal(render(every_content(3)), render(every_content(3)))
    assert not np.array_equal(render(every_content(3)), render(every_content(4)))


def test_the_detector_reads_every_content() -> None:
    clips = every_content(1, times=6)
    for i, video in enumerate(render(clips)):
        seen = find_motion(video)
        expected = (SHAPES[clips.shape[i]], COLORS[clips.color[i]], DIRECTIONS[clips.direction[i]])
        assert (seen.shape, seen.color, seen.direction) == expected
        assert seen.travel is not None
        way = STEPS[clips.direction[i]] * clips.speed[i] * (FRAMES - 1)
        assert np.allclose(seen.travel, way, atol=1.0)  # it counts whole pixels


def clip() -> np.ndarray:
    """Return a red square that moves right."""
    fixed = (np.array([[16.0, 16.0]], dtype=np.float32), np.array([5.0], dtype=np.float32))
    speed, ground = np.array([3.0], dtype=np.float32), np.full((1, 3), 0.95, dtype=np.float32)
    return render(Clips(np.array([1]), np.array([0]), np.array([1]), *fixed, speed, ground))[0]


def test_clips_without_exactly_one_moving_shape() -> None:
    video = clip()
    assert find_motion(video).direction == "right"
    assert find_motion(video[::-1]).direction == "left"
    assert find_motion(video.transpose(0, 1, 3, 2)).direction == "down"
    still = find_motion(np.repeat(video[2:3], FRAMES, axis=0))
    assert (still.shape, still.color, still.direction) == ("square", "red", None)
    assert still.reason == "it moves by only 0.0 pixels"
    aslant = np.stack([np.roll(frame, 3 * i - 6, axis=1) for i, frame in enumerate(video)])
    assert find_motion(aslant).reason == "it moves diagonally"
    empty = find_motion(np.full_like(video, 0.9))
    assert (empty.shape, empty.color, empty.direction) == (None, None, None)
    assert empty.reason == "no shape in 5 frames, several in 0 of 5"
    two = video.copy()
    two[:, :, :11] = np.where(video[:, :, 11:22] < 0.9, video[:, :, 11:22], two[:, :, :11])
    assert find_motion(two).shape is None
    assert "several in 5 of 5" in find_motion(two).reason


def test_one_bad_frame_is_accepted_two_are_not() -> None:
    video = clip()
    video[0] = 0.9
    assert find_motion(video).direction == "right"
    assert find_motion(video).boxes[0] is None
    video[4] = 0.9
    assert find_motion(video).direction is None


def test_faults_change_one_word() -> None:
    rng = Random(0)
    changed = {"shape": 0, "color": 0, "direction": 0}
    for caption in all_captions() * 20:
        wrong = corrupt(caption, rng)
        (what,) = [key for key, value in caption.metadata().items() if wrong.metadata()[key] != value]
        changed[what] += 1
    assert changed["direction"] / 960 == pytest.approx(0.5, abs=0.05)
    assert changed["color"] / 960 == pytest.approx(0.25, abs=0.05)
