"""Choose a detector's thresholds from pictures of which one knows how many objects they show. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dgpo_geneval.detector import Detection
from dgpo_geneval.precision import float32

__all__ = ["Choice", "Labeled", "agreement", "choose", "exact_share", "f1"]


@dataclass(frozen=True, slots=True)
class Labeled:
    """A picture. objects: the true number of objects of some classes, 0 for a class that it does not show; classes that
    are not named are not judged. detections: what the detector sees at the lowest threshold."""

    objects: Mapping[str, int]
    detections: Sequence[Detection]


@dataclass(frozen=True, slots=True)
class Choice:
    """The threshold with the best agreement. lowest, highest: all thresholds in [lowest, highest) have it; threshold:
    their middle."""

    threshold: float
    lowest: float
    highest: float
    agreement: float


Counts = Sequence[tuple[int, int]]
"""(found, true) of each class of each picture."""
Measure = Callable[[Counts], float]


def f1(counts: Counts) -> float:
    """Return the F1 score of objects, of which min(found, true) are taken to be right; 1 if there are none at all."""
    right = sum(min(pair) for pair in counts)
    total = sum(found + true for found, true in counts)
    return 2 * right / total if total else 1.0


def exact_share(counts: Counts) -> float:
    """Return the share of classes of pictures that have the true count."""
    return sum(found == true for found, true in counts) / len(counts)


def agreement(pictures: Sequence[Labeled], threshold: float, per_class: int, measure: Measure) -> float:
    """Return how well the numbers of detections whose score exceeds a threshold, as `evaluator.keep` counts them, agree
    with the true ones."""
    counts = []
    for picture in pictures:
        for label, true in picture.objects.items():
            scores = [one.score for one in picture.detections if one.label == label]
            found = sum(float32(score) > float32(threshold) for score in scores)
            counts.append((min(found, per_class), true))
    return measure(counts)


def choose(pictures: Sequence[Labeled], lowest: float, per_class: int, measure: Measure) -> Choice:
    """Return the middle of the widest range of thresholds in [lowest, 1) with the best agreement; of equally wide ones,
    the lowest."""
    scores = {float32(one.score) for picture in pictures for one in picture.detections if one.label in picture.objects}
    edges = [lowest, *sorted(score for score in scores if lowest < score < 1), 1.0]
    ranges: list[Choice] = []
    for low, high in pairwise(edges):
        value = agreement(pictures, low, per_class, measure)
        if ranges and ranges[-1].agreement == value:
            low = ranges.pop().lowest
        ranges.append(Choice(_middle(low, high), low, high, value))
    best = max(one.agreement for one in ranges)
    return max((one for one in ranges if one.agreement == best), key=lambda one: one.highest - one.lowest)


def _middle(low: float, high: float) -> float:
    """Return the middle of a range, with as few digits as fit."""
    middle = (low + high) / 2
    rounded = (round(middle, digits) for digits in range(2, 9))
    return next((one for one in rounded if low <= one < high), low)
