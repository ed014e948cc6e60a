"""Images and captions against the detector and independent geometry."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from dgpo_geneval.evaluator import evaluate
from dgpo_geneval.metadata import Metadata
from dgpo_miniature.captions import (
    TASKS,
    TRAIN_TEMPLATES,
    Caption,
    all_captions,
    corrupt,
    metadata,
    scene_content,
    text,
)
from dgpo_miniature.detector import ShapeDetector, find_shapes
from dgpo_miniature.world import CELL, CLASSES, COLORS, EMPTY, RGB, SIZE, random_scenes, render


def images_of(contents: list[Caption], seed: int = 0) -> np.ndarray:
    rng = Random(seed)
    content = [scene_content(caption, rng) for caption in contents]
    kind, color = (np.array(part) for part in zip(*content, strict=True))
    return render(random_scenes(kind, color, np.random.default_rng(seed)))


def verdicts(captions: list[Caption], images: np.ndarray) -> list[bool]:
    return [
        evaluate(
            Metadata.model_validate(metadata(caption, text(caption, TRAIN_TEMPLATES[0]))),
            seen,
            variant="geneval-official",
            thresholds=ShapeDetector.thresholds,
        ).correct
        for caption, seen in zip(captions, find_shapes(images), strict=True)
    ]


def some(task: str, count: int) -> list[Caption]:
    rng = Random(f"test {task}")
    return [rng.choice(all_captions(task)) for _ in range(count)]


def test_detector_recovers_classes_colors_and_boxes() -> None:
    rng = np.random.default_rng(7)
    kind = rng.integers(EMPTY, len(CLASSES), size=(300, 4))
    color = rng.integers(len(COLORS), size=(300, 4))
    scenes = random_scenes(kind, color, rng)
    right = 0
    for n, seen in enumerate(find_shapes(render(scenes))):
        drawn = sorted((CLASSES[kind[n, c]], COLORS[color[n, c]]) for c in range(4) if kind[n, c] != EMPTY)
        right += sorted((d.label, str(d.color)) for d in seen if d.score > ShapeDetector.thresholds.score) == drawn
        for detection in seen:
            x0, y0, x1, y1 = detection.box
            cell = 2 * int((y0 + y1) / 2 // CELL) + int((x0 + x1) / 2 // CELL)
            assert max(x1 - x0, y1 - y0) == pytest.approx(2 * scenes.radius[n, cell], abs=3.5)
    assert right >= 0.98 * 300


@pytest.mark.parametrize("task", TASKS)
def test_true_captions_are_judged_correct(task: str) -> None:
    captions = some(task, 60)
    assert np.mean(verdicts(captions, images_of(captions))) >= 0.98


@pytest.mark.parametrize("task", TASKS)
def test_corrupted_captions_are_judged_wrong(task: str) -> None:
    rng = Random(3)
    captions = some(task, 60)
    wrong = [corrupt(caption, rng) for caption in captions]
    assert all(a != b for a, b in zip(captions, wrong, strict=True))
    assert np.mean(verdicts(captions, images_of(wrong))) <= 0.02


def test_images_do_not_depend_on_their_batch() -> None:
    images = images_of(some("color_attr", 5))
    alone = [find_shapes(image[None])[0] for image in images]
    assert find_shapes(images) == alone


def test_position_of_a_square() -> None:
    kind = np.array([[CLASSES.index("square"), EMPTY, EMPTY, EMPTY]])
    scenes = random_scenes(kind, np.zeros((1, 4), dtype=int), np.random.default_rng(0))
    scenes.center[0, 0], scenes.radius[0, 0] = (16.0, 14.0), 10.0
    image = render(scenes)[0]
    assert image.shape == (3, SIZE, SIZE)
    assert image[:, 5:23, 7:25] == pytest.approx(np.broadcast_to(RGB[0][:, None, None], (3, 18, 18)))
    outside = np.ones((SIZE, SIZE), dtype=bool)
    outside[5:23, 7:25] = False
    assert image[:, outside] == pytest.approx(np.broadcast_to(scenes.ground[0][:, None], (3, outside.sum())))


def test_masks_cover_the_blob() -> None:
    image = images_of(some("colors", 1))
    (seen,) = find_shapes(image, masks=True)[0]
    assert seen.mask is not None
    rows, columns = np.nonzero(seen.mask)
    assert seen.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("fill", [0.0, 0.5, 1.0])
def test_no_detection_on_an_empty_image(fill: float) -> None:
    assert find_shapes(np.full((2, 3, SIZE, SIZE), fill, dtype=np.float32)) == [[], []]


def test_noise_does_not_break_the_detector() -> None:
    noise = np.random.default_rng(0).random((4, 3, SIZE, SIZE), dtype=np.float32)
    assert all(d.score <= 1.0 for seen in find_shapes(noise) for d in seen)
