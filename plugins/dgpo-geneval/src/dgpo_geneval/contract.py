"""The contract of detectors as checks of dgpo-kit: boxes inside the image, one list an image whatever the batch."""

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
    """Labels it declares, boxes inside the image, and detections that do not depend on the batch.

    images [B, 3, H, W], float in [0, 1].
    """
    run_all(detector_checks(lambda: detector, images))


def detector_checks(make: Callable[[], Detector], images: Tensor | None = None) -> Iterator[Check]:
    """What a detector promises, on `images` [B, 3, H, W] or drawn ones."""

    @cache
    def subject() -> _Subject:
        return _Subject(make(), _spots() if images is None else images)

    return checks_of(subject, declares, detections, untouched, determinism, batch_invariance, sizes, random_state)


@dataclass(frozen=True)
class _Subject:
    detector: Detector
    images: Tensor

    def detect(self, images: Tensor) -> Any:
        return self.detector.detect(images.clone())


def _spots() -> Tensor:
    """Colored squares on gray, and drawn images."""
    squares = torch.full((3, 3, SIDE, SIDE), 0.9)
    for channel, place in enumerate((4, 20, 36)):
        squares[channel, :, place : place + 20, place : place + 20] = 0.1
        squares[channel, channel, place : place + 20, place : place + 20] = 0.95
    return torch.cat([squares, drawn((3, SIDE, SIDE))])


def declares(s: _Subject) -> None:
    """Its labels."""
    labels = s.detector.labels
    that(labels and len(set(labels)) == len(labels), "it declares its labels, each once")


def detections(s: _Subject) -> None:
    """One list an image, with labels, scores and boxes that make sense."""
    _check_detections(s, s.images, s.detect(s.images))


def untouched(s: _Subject) -> None:
    """Images belong to the reward."""
    shown = s.images.clone()
    s.detector.detect(shown)
    equal(shown, s.images, "images are left alone")


def determinism(s: _Subject) -> None:
    """The image decides."""
    that(s.detect(s.images) == s.detect(s.images), "detections are the same every time")


def batch_invariance(s: _Subject) -> None:
    """Any batch gives the same."""
    together = s.detect(s.images)
    alone = [s.detect(s.images[i : i + 1]) for i in range(len(s.images))]
    that([one for (one,) in alone] == together, "an image's detections do not depend on the others")


def sizes(s: _Subject) -> None:
    """Images of any size, single pixels included; one that it cannot bear may raise, its sample is then missing."""
    for height, width in SIZES:
        images = media_of_size("image", height, width)
        try:
            found = s.detect(images)
        except Exception:
            continue
        _check_detections(s, images, found)


def random_state(s: _Subject) -> None:
    """Detections are not drawn."""
    with global_state_left_alone("a detector"):
        s.detect(s.images)


def _check_detections(s: _Subject, images: Tensor, found: Any) -> None:
    height, width = images.shape[-2:]
    that(len(found) == len(images), f"there is one list of detections an image: {len(images)}, not {len(found)}")
    for detection in (detection for one in found for detection in one):
        x0, y0, x1, y1 = detection.box
        that(detection.label in s.detector.labels, f"{detection.label!r} is one of its labels")
        that(math.isfinite(detection.score), "scores are finite")
        that(0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height, f"the box {detection.box} lies in the image")
        if detection.mask is not None:
            that(detection.mask.shape == (height, width) and detection.mask.dtype == bool, "a mask is bool [H, W]")
