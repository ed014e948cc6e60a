"""The relation rule against hand-computed numbers and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgpo_geneval.detector import Box
from dgpo_geneval.geometry import relations
from dgpo_geneval.precision import float32

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def box(cx: float, cy: float, width: float = 20, height: float = 20) -> Box:
    return (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)


CENTER = box(100, 100)


@pytest.mark.parametrize(
    ("a", "expected"),
    [
        # Two 20 px squares: an axis' offset shrinks by 0.1 * (20 + 20) = 4 px.
        (box(160, 100), {"right of"}),  # 56/60 = 0.93
        (box(40, 100), {"left of"}),
        (box(100, 160), {"below"}),  # y grows downwards
        (box(100, 40), {"above"}),
        (box(160, 160), {"right of", "below"}),  # 56/84.85 = 0.66 on both axes
        (box(40, 40), {"left of", "above"}),
        (box(100, 100), set()),  # no offset at all
        (box(104, 96), set()),  # exactly 4 px: nothing is left
        (box(103, 100), set()),
        # One axis: (d - 4)/d > 0.5 only beyond d = 8, for the length is that of the offset before it was shrunk.
        (box(108, 100), set()),  # 4/8 = 0.5: not more than 0.5
        (box(108.01, 100), {"right of"}),
        (box(92, 100), set()),
        (box(91.99, 100), {"left of"}),
        (box(100, 108), set()),
        (box(100, 108.01), {"below"}),
        (box(100, 91.99), {"above"}),
        # Diagonal (40, 20): length 44.72; x 36/44.72 = 0.80, y 16/44.72 = 0.36. Over the shrunk length (39.4) y would
        # be 0.41, still none; at (40, 27): length 48.26, y 23/48.26 = 0.477; over the shrunk length 42.7 it would pass.
        (box(140, 120), {"right of"}),
        (box(140, 127), {"right of"}),
        (box(140, 130), {"right of", "below"}),  # 26/50 = 0.52
    ],
)
def test_hand_computed(a: Box, expected: set[str]) -> None:
    assert relations(a, CENTER) == expected


def test_each_axis_shrinks_by_its_own_size() -> None:
    # Widths 100 + 20 shrink x by 12, heights 20 + 20 shrink y by 4: (20, 20) leaves 8/28.28 = 0.28 and 16/28.28 = 0.57.
    assert relations(box(120, 120, width=100), CENTER) == {"below"}


def test_both_boxes_shrink_the_offset() -> None:
    # 0.1 * (20 + 200) = 22: an offset of 40 leaves 18/40 = 0.45; the other way about it is the same.
    assert relations(box(140, 100), box(100, 100, width=200)) == set()
    assert relations(box(140, 100, width=200), CENTER) == set()
    assert relations(box(145, 100), box(100, 100, width=200)) == {"right of"}  # 23/45 = 0.51


def test_what_is_nearly_nothing_is_no_relation() -> None:
    point = box(0, 0, 0, 0)
    assert relations(box(0.0009, 0, 0, 0), point) == set()
    assert relations(box(0.0011, 0, 0, 0), point) == {"right of"}


def test_an_edge_lies_where_float32_has_it() -> None:
    """The share of x is 0.50000005 in exact numbers, and 0.5 in the benchmark's float32: no relation."""
    a, b = box(439.5, 457.5, 233, 21), box(117, 10, 234, 20)
    offset, sizes = np.array([322.5, 447.5]), np.array([467.0, 41.0])
    exact, single = (
        (o - 0.1 * s)[0] / np.linalg.norm(o)
        for o, s in ((offset, sizes), (offset.astype(np.float32), sizes.astype(np.float32)))
    )
    assert exact > 0.5
    assert single.dtype == np.float32
    assert single == 0.5
    assert relations(a, b) == {"below"}


def test_boxes_beyond_float32_are_no_error() -> None:
    assert relations((0, 0, 1e300, 1e300), CENTER) == set()


@settings(deadline=None)
@given(st.floats())
def test_float32_is_numpys(value: float) -> None:
    with np.errstate(all="ignore"):
        assert np.array_equal(np.float64(np.float32(value)), float32(value), equal_nan=True)


@settings(deadline=None)
@given(st.floats(0, 2 * math.pi))
def test_points_follow_the_angle(angle: float) -> None:
    """Boxes without a size: nothing is shrunk, and a relation holds within 60 degrees of its axis."""
    dx, dy = math.cos(angle), math.sin(angle)
    near_edge = min(abs(abs(dx) - 0.5), abs(abs(dy) - 0.5)) < 1e-5  # float32, of boxes five lengths away
    expected = {
        name for name, along in (("right of", dx), ("left of", -dx), ("below", dy), ("above", -dy)) if along > 0.5
    }
    point = (50.0, 50.0, 50.0, 50.0)
    assert near_edge or relations((50 + 10 * dx, 50 + 10 * dy) * 2, point) == expected


coordinates = st.integers(0, 64).map(float)
boxes = st.tuples(coordinates, coordinates, coordinates, coordinates).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@settings(deadline=None)
@given(boxes, boxes)
def test_exchanging_the_boxes_turns_every_relation_round(a: Box, b: Box) -> None:
    assert relations(b, a) == {OPPOSITE[name] for name in relations(a, b)}


@settings(deadline=None)
@given(boxes, boxes)
def test_turning_the_image_by_a_quarter_turns_the_relations(a: Box, b: Box) -> None:
    turned = {"left of": "above", "right of": "below", "above": "left of", "below": "right of"}

    def transpose(c: Box) -> Box:
        return (c[1], c[0], c[3], c[2])

    assert relations(transpose(a), transpose(b)) == {turned[name] for name in relations(a, b)}
