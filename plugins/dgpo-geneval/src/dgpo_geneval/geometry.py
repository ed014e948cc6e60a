"""GenEval's rule for how one box lies to another (arXiv 2310.11513, appendix; djghosh13/geneval)."""

from __future__ import annotations

import math

from dgpo_geneval.detector import Box
from dgpo_geneval.metadata import Relation

__all__ = ["relations"]

SHRINK = 0.1
"""Share of both boxes' sizes by which the offset between their centres is shrunk, along each axis."""
NEAR_ZERO = 1e-3
"""Pixels below which a shrunk offset is none."""
DIRECTION = 0.5
"""Least share of the offset's length that an axis must hold: sin 30°, so two relations may hold at once."""


def relations(a: Box, b: Box) -> frozenset[Relation]:
    """Relations in which box `a` stands to box `b`; none, one (right of), or two (right of and below).

    Boxes (x0, y0, x1, y1) in pixels, y downwards. Per axis the offset of a's centre from b's is shrunk by
    0.1 * (size of a + size of b), keeping its sign. If nothing is left on both axes no relation holds; else the shrunk
    offset is divided by the length of the offset *before* it was shrunk, so near boxes must be well aligned to count.
    """
    offset = [(a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2 for axis in (0, 1)]
    sizes = [abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis]) for axis in (0, 1)]
    left = [math.copysign(max(abs(o) - SHRINK * s, 0.0), o) for o, s in zip(offset, sizes, strict=True)]
    if all(abs(component) < NEAR_ZERO for component in left):
        return frozenset()
    length = math.hypot(*offset)
    dx, dy = (component / length for component in left)
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
