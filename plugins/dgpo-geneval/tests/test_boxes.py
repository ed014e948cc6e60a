"""From boxes to detections: suppression against torchvision and a definition, thresholds, clipping, masks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torchvision.ops import batched_nms, box_convert

from dgpo_geneval.classes import CLASSES
from dgpo_geneval.colors import cut_out
from dgpo_geneval.detectors.boxes import BoxDetector, Boxes, best_classes, corners, inner_mask, suppress
from dgpo_geneval.detectors.options import BoxOptions, GroundingDinoOptions, OwlOptions

CPU = torch.device("cpu")


def random_boxes(count: int, seed: int, classes: int = 3) -> Boxes:
    draws = np.random.default_rng(seed)
    near = draws.uniform(0, 60, (count, 2))
    box = np.concatenate([near, near + draws.uniform(1, 40, (count, 2))], 1).astype(np.float32)
    score = draws.permutation(count).astype(np.float32) / count
    return Boxes(box, score, draws.integers(0, classes, count))


@pytest.mark.parametrize("overlap", [0.1, 0.45, 0.9])
@pytest.mark.parametrize("count", [0, 1, 2, 200])
def test_suppression_is_torchvisions(count: int, overlap: float) -> None:
    for seed in range(5):
        found = random_boxes(count, seed)
        expected = batched_nms(*map(torch.from_numpy, (found.box, found.score, found.label)), overlap)
        assert suppress(found, overlap).tolist() == expected.tolist()


@given(st.integers(0, 12), st.integers(0, 10**6), st.sampled_from([0.2, 0.5]))
def test_suppression_is_its_definition(count: int, seed: int, overlap: float) -> None:
    """A box stays if no box that stays, of its class and better, has more in common with it."""
    found = random_boxes(count, seed)

    def shared(a: Any, b: Any) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        both = width * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)

    stay: list[int] = []
    boxes = found.box.astype(np.float64)
    for i in sorted(range(count), key=lambda i: -found.score[i]):
        rivals = [j for j in stay if found.label[j] == found.label[i]]
        if all(shared(boxes[i], boxes[j]) <= overlap for j in rivals):
            stay.append(i)
    assert suppress(found, overlap).tolist() == stay


def test_equal_scores_keep_the_first() -> None:
    box = np.array([[0, 0, 10, 10]] * 3, dtype=np.float32)
    same = Boxes(box, np.full(3, 0.5, dtype=np.float32), np.array([1, 1, 2]))
    assert suppress(same, 0.5).tolist() == [0, 2]


def test_corners_are_torchvisions() -> None:
    boxes = torch.rand(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(corners(boxes), box_convert(boxes, "cxcywh", "xyxy"))


def test_a_box_has_one_class() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.69], [0.4, 0.2, 0.4]])
    found = best_classes(scores, torch.rand(2, 4))
    assert found.label.tolist() == [1, 0]
    assert found.score.tolist() == pytest.approx([0.7, 0.4])
    sure = best_classes(torch.tensor([[40.0, 50.0], [-1.0, -2.0]]), torch.rand(2, 4), logits=True)
    assert sure.label.tolist() == [1, 0]
    assert sure.score.tolist() == pytest.approx([1.0, 1 / (1 + math.e)])


def test_the_middle_of_a_box() -> None:
    mask = inner_mask((10, 20, 50, 40), (60, 80), 0.5)
    assert mask is not None
    rows, columns = np.nonzero(mask)
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == (20, 40, 25, 35)
    assert inner_mask((10, 20, 50, 40), (60, 80), 1.0) is None
    for box in [(79.9, 59.9, 80.0, 60.0), (0, 0, 0.1, 0.1), (3.2, 4.8, 3.3, 50.0)]:
        thin = inner_mask(box, (60, 80), 0.1)  # type: ignore[arg-type]
        assert thin is not None
        assert thin.sum() >= 1


class Known(BoxDetector):
    """Sees the same boxes in any image."""

    names = ("cat", None, "dog")
    labels = ("cat", "dog")

    def __init__(self, boxes: list[Any], scores: list[float], labels: list[int], **options: Any) -> None:
        super().__init__(BoxOptions(**({"score": 0.3, "counting": 0.6} | options)), device=CPU)
        self.seen = Boxes(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))

    def find(self, image: Tensor) -> Boxes:
        return self.seen


IMAGE = torch.zeros(1, 3, 40, 60)


def test_detections_are_named_clipped_and_sorted() -> None:
    boxes = [[-5, -5, 30, 30], [10, 10, 90, 90], [0, 0, 9, 9], [70, 0, 90, 9], [1, 1, 2, 2]]
    seen = Known(boxes, [0.4, 0.9, 0.99, 0.8, 0.29], [0, 2, 1, 0, 0])
    (found,) = seen.detect(IMAGE)
    # Of the others, one has no name, one lies outside the image, one is below both thresholds.
    assert [(one.label, one.box, one.mask) for one in found] == [
        ("dog", (10, 10, 60, 40), None),
        ("cat", (0, 0, 30, 30), None),
    ]
    assert [one.score for one in found] == [float(np.float32(0.9)), float(np.float32(0.4))]
    assert (seen.thresholds.score, seen.thresholds.counting, seen.thresholds.per_class) == (0.3, 0.6, 16)
    assert seen.provenance() == {"score": 0.3, "counting": 0.6, "per_class": 16, "overlap": None}


def test_duplicates_are_dropped_on_demand() -> None:
    twice = ([[0, 0, 20, 20], [1, 0, 20, 20], [1, 0, 20, 20]], [0.7, 0.8, 0.6], [0, 0, 2])
    assert [len(Known(*twice, overlap=overlap).detect(IMAGE)[0]) for overlap in (None, 0.5)] == [3, 2]


def test_colors_may_see_the_middle_alone() -> None:
    ((one,),) = Known([[10, 10, 30, 30]], [0.9], [0], color_box=0.5).detect(IMAGE)
    assert one.mask is not None
    assert one.mask.shape == (40, 60)
    assert one.mask[15:25, 15:25].all()
    assert one.mask.sum() == 100
    assert one.box == (10, 10, 30, 30)
    shown = cut_out(torch.ones(3, 40, 60), one, torch.zeros(3, 1, 1), crop=True)
    assert shown.shape == (3, 20, 20)
    assert shown[:, 5:15, 5:15].all()
    assert shown.sum() == 3 * 100


@pytest.mark.parametrize("where", ["box", "score"])
def test_what_is_not_a_number_is_no_empty_picture(where: str) -> None:
    seen = Known([[0, 0, 9, 9]], [0.9], [0])
    getattr(seen.seen, where)[0] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        seen.detect(IMAGE)


def test_options() -> None:
    assert GroundingDinoOptions().classes == OwlOptions().classes == list(CLASSES)
    for kind, bad in itertools.product((GroundingDinoOptions, OwlOptions), ([], [""], ["cat", " Cat "])):
        with pytest.raises(ValidationError):
            kind(classes=bad)
    with pytest.raises(ValidationError, match="separates classes"):
        GroundingDinoOptions(classes=["st. bernard"])
    with pytest.raises(ValidationError, match="template"):
        OwlOptions(template="a photo")
