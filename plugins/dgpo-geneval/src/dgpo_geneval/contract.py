"""Checks of detectors for dgpo-kit: valid detections, one list per image, independent of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dgpo_geneval.detector import Detector
from dgpo_kit.contracts import (
    SIDE,
    SIZES,
    Check,
    checks_of,
    drawn,
    equal,
    global_state_left_alone,
    media_of_size,
    run_all,
    that,
)

__all__ = ["check_detector", "detector_checks"]


def check_detector(detector: Detector, images: Tensor) -> None:
    """Check that labels are declared, boxes lie in the image, and detections do not depend on the batch.

    images: [B, 3, H, W], float in [0, 1]. Raises AssertionError at the first violation.
    """
    run_all(detector_checks(lambda: detector, images))


def detector_checks(make: Callable[[], Detector], images: Tensor | None = None) -> Iterator[Check]:
    """Yield the checks of a detector on `images` [B, 3, H, W], by default generated ones."""

    @cache
    def subject() -> _Subject:
        return _Subject(make(), _squares() if images is None else images)

    return checks_of(subject, declares, detections, untouched, determinism, batch_invariance, sizes, random_state)


@dataclass(frozen=True)
class _Subject:
    detector: Detector
    images: Tensor

    def detect(self, images: Tensor) -> Any:
        return self.detector.detect(images.clone())


def _squares() -> Tensor:
    """Return images with colored squares on light gray, and generated images."""
    squares = torch.full((3, 3, SIDE, SIDE), 0.9)
    for channel, place in enumerate((4, 20, 36)):
        squares[channel, :, place : place + 20, place : place + 20] = 0.1
        squares[channel, channel, place : place + 20, place : place + 20] = 0.95
    return torch.cat([squares, drawn((3, SIDE, SIDE))])


def declares(s: _Subject) -> None:
    """`labels` is not empty and has no duplicates."""
    labels = s.detector.labels
    that(labels and len(set(labels)) == len(labels), "`labels` must not be empty and must have no duplicates")


def detections(s: _Subject) -> None:
    """`detect` returns one list per image, with valid labels, scores, boxes and masks."""
    _check_detections(s, s.images, s.detect(s.images))


def untouched(s: _Subject) -> None:
    """Images are not modified; they belong to the reward."""
    shown = s.images.clone()
    s.detector.detect(shown)
    equal(shown, s.images, "images must not be modified")


def determinism(s: _Subject) -> None:
    """Detections depend on the image alone."""
    that(s.detect(s.images) == s.detect(s.images), "detections must be deterministic")


def batch_invariance(s: _Subject) -> None:
    """Detections do not depend on the batch."""
    together = s.detect(s.images)
    alone = [s.detect(s.images[i : i + 1]) for i in range(len(s.images))]
    requirement = "the detections of an image must not depend on the other images"
    that([objects for (objects,) in alone] == together, requirement)


def sizes(s: _Subject) -> None:
    """Detections are valid for images of any size, including single pixels. `detect` may raise an error for unsupported
    sizes, whose samples are then missing."""
    for height, width in SIZES:
        images = media_of_size("image", height, width)
        try:
            found = s.detect(images)
        except Exception:
            continue
        _check_detections(s, images, found)


def random_state(s: _Subject) -> None:
    """Detections do not use a global random generator."""
    with global_state_left_alone("a detector"):
        s.detect(s.images)


def _check_detections(s: _Subject, images: Tensor, found: Any) -> None:
    height, width = images.shape[-2:]
    that(len(found) == len(images), f"there must be one list per image: {len(images)}, got {len(found)}")
    for detection in (detection for objects in found for detection in objects):
        x0, y0, x1, y1 = detection.box
        that(detection.label in s.detector.labels, f"label {detection.label!r} must be one of `labels`")
        that(math.isfinite(detection.score), "scores must be finite")
        that(0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height, f"box {detection.box} must lie in the image")
        if detection.mask is not None:
            valid = detection.mask.shape == (height, width) and detection.mask.dtype == bool
            that(valid, f"a mask must be bool [H, W] {[height, width]}")
