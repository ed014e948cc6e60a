"""GenEval's relations between two boxes (arXiv 2310.11513, appendix; djghosh13/geneval)."""

from __future__ import annotations

import functools
import math

from dgpo_geneval.detector import Box
from dgpo_geneval.metadata import Relation
from dgpo_geneval.precision import float32

__all__ = ["relations"]

SHRINK = float32(0.1)
"""Fraction of the sum of both sizes by which the offset between the centers is reduced along each axis."""
NEAR_ZERO = float32(1e-3)
"""Reduced offsets below this, in pixels, count as zero."""
DIRECTION = 0.5
"""Minimum fraction of the offset's length along an axis: sin 30°, so two relations may hold at once."""


def relations(a: Box, b: Box) -> frozenset[Relation]:
    """Return the relations of box `a` to box `b`: none, one ("right of") or two ("right of" and "below").

    Boxes are (x0, y0, x1, y1) in pixels, y downwards. Along each axis, the offset of a's center from b's is reduced by
    0.1 * (size of a + size of b), keeping its sign. If it is zero on both axes, no relation holds. Otherwise, the
    reduced offset is divided by the length of the *original* offset, so close boxes must be well aligned. All
    arithmetic is float32, as in the benchmark, so that borderline cases have the same result: an exact fraction of
    0.50000005 is 0.5 in float32, and no relation.
    """
    return _relations(tuple(a), tuple(b))


@functools.lru_cache(maxsize=4096)
def _relations(a: Box, b: Box) -> frozenset[Relation]:
    a0, a1, a2, a3, b0, b1, b2, b3 = map(float32, (*a, *b))
    offset, left = [], []
    for a_near, a_far, b_near, b_far in ((a0, a2, b0, b2), (a1, a3, b1, b3)):
        between = float32(float32(float32(a_near + a_far) / 2) - float32(float32(b_near + b_far) / 2))
        sizes = float32(abs(float32(a_far - a_near)) + abs(float32(b_far - b_near)))
        shrunk = max(float32(abs(between) - float32(SHRINK * sizes)), 0.0)
        offset.append(between)
        left.append(math.copysign(shrunk, between))
    if all(abs(component) < NEAR_ZERO for component in left):
        return frozenset()
    length = float32(math.sqrt(float32(sum(float32(component * component) for component in offset))))
    dx, dy = (float32(component / length) for component in left)
    found: set[Relation] = set()
    if dx < -DIRECTION:
        found.add("left of")
    if dx > DIRECTION:
        found.add("right of")
    if dy < -DIRECTION:
        found.add("above")
    if dy > DIRECTION:
        found.add("below")
    return frozenset(found)
