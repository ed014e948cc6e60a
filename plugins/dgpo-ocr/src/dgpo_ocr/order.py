"""Reading order of the lines that an engine found.

Engines sort by the upper edge, in steps of pixels: of two words in one line, the one that is a few pixels higher comes
first. Here words are in one row if their vertical extents overlap, regardless of their size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean as mean

from dgpo_ocr.engine import Line

__all__ = ["readings"]

SAME_ROW = 0.4
"""Two words are in one row if they overlap vertically by at least this fraction of the smaller height."""
DOUBTFUL = 0.1
"""Two words may be in one row if they overlap by this fraction: a word half a letter above its line is ambiguous."""
STACKED = 0.3
"""Two words are stacked, not in one row, if they overlap horizontally by more than this fraction of the smaller
width."""
TALL = 1.5
"""A word at least this many times as high as the lines beside it spans them, as a price beside a name in two lines."""
GUTTER = 1.0
"""Minimum gap between columns, in line heights."""
LEADING = 2.0
"""Maximum gap between the lines of a column, in line heights."""
FAR = 0.05
"""Overlap fraction that one height of horizontal distance costs: a rising line continues with the next word, not with a
distant one at the same level."""
AGREE, MOST = math.radians(3), 0.75
"""Text is rotated to be level if this fraction (`MOST`) of its length has the same angle, within `AGREE` radians."""


@dataclass(frozen=True, slots=True)
class _Box:
    """A line and its extent along and across the reading direction, in pixels: left < right, top < bottom."""

    line: Line
    left: float
    right: float
    top: float
    bottom: float

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def level(self) -> float:
        return (self.top + self.bottom) / 2

    @property
    def middle(self) -> float:
        return (self.left + self.right) / 2

    def shares_height(self, other: _Box) -> float:
        """Return the vertical overlap as a fraction of the smaller height, at most 1; negative if they are apart."""
        return _shared(self.top, self.bottom, other.top, other.bottom)

    def shares_width(self, other: _Box) -> float:
        """Return the horizontal overlap as a fraction of the smaller width, likewise."""
        return _shared(self.left, self.right, other.left, other.right)


def readings(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the possible reading orders of the lines, the likeliest first. Each contains all lines.

    The orders are: by rows, each from left to right; by rows that include ambiguous words; and by columns, if several
    rows share a gap. Equal orders are returned once; usually there is only one.

    The order of `lines` only matters for lines in exactly the same place. Text may be rotated by up to 45 degrees.
    """
    if not all(line.polygon for line in lines):  # the engine does not report positions
        return [list(lines)]
    angle = _angle(lines)
    found: list[list[Line]] = []
    for turned in (angle, 0.0) if 0 < abs(angle) <= AGREE else (angle,):  # the tilt of a box may be noise
        boxes = _boxes(lines, turned)
        for ordered in (_by_rows(boxes), _by_rows(boxes, DOUBTFUL), _by_columns(boxes)):
            way = [box.line for box in ordered]
            if not any(all(a is b for a, b in zip(way, other, strict=True)) for other in found):
                found.append(way)
    return found


def _by_rows(boxes: Sequence[_Box], least: float = SAME_ROW) -> list[_Box]:
    found: list[_Box] = []
    for rows in _blocks(_rows(boxes, least)):
        block = [box for row in rows for box in row]
        if len(rows) == 1:
            found += sorted(block, key=lambda box: box.middle)
            continue
        tall = max(block, key=lambda box: box.height)  # the texts left and right of it are read separately
        others = [box for box in block if box is not tall]
        over = [box for box in others if box.shares_width(tall) > STACKED]
        beside = [box for box in others if box.shares_width(tall) <= STACKED]
        found += _by_rows([box for box in over if box.level < tall.level], least)
        found += _by_rows([box for box in beside if box.middle < tall.middle], least)
        found.append(tall)
        found += _by_rows([box for box in beside if box.middle >= tall.middle], least)
        found += _by_rows([box for box in over if box.level >= tall.level], least)
    return found


def _rows(boxes: Sequence[_Box], least: float = SAME_ROW) -> list[list[_Box]]:
    """Group boxes into rows, from top to bottom.

    Pairs with the largest vertical overlap and the smallest distance are joined first, so that a box between two lines
    joins the right one. No row contains stacked boxes.
    """
    pairs = [
        (FAR * _apart(a, b) - shared, j, i)
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes[:i])
        if (shared := a.shares_height(b)) >= least
    ]
    row_of = [[index] for index in range(len(boxes))]
    for _, i, j in sorted(pairs):
        one, other = row_of[i], row_of[j]
        if one is other or any(boxes[a].shares_width(boxes[b]) > STACKED for a in one for b in other):
            continue
        one += other
        for index in other:
            row_of[index] = one
    rows = [[boxes[index] for index in row] for row in {id(row): row for row in row_of}.values()]
    return sorted(rows, key=lambda row: (mean(box.level for box in row), min(box.left for box in row)))


def _blocks(rows: list[list[_Box]]) -> list[list[list[_Box]]]:
    """Group the rows that a tall box spans."""
    blocks = [[row] for row in rows]
    for tall in [box for row in rows for box in row]:
        beside = [block for block in blocks if any(_beside(tall, box) for row in block for box in row)]
        if len(beside) > 1:
            beside[0] += [row for block in beside[1:] for row in block]
            blocks = [block for block in blocks if not any(block is merged for merged in beside[1:])]
    return blocks


def _beside(tall: _Box, box: _Box) -> bool:
    return box is tall or (tall.height >= TALL * box.height and tall.shares_height(box) >= SAME_ROW)


def _by_columns(boxes: Sequence[_Box]) -> list[_Box]:
    rows = _rows(boxes)
    found: list[_Box] = []
    waiting: list[_Box] = []
    while rows:
        count = len(rows)
        while count > 1 and not (columns := _columns(rows[:count])):
            count -= 1
        if count > 1:
            found += _by_rows(waiting) + [box for column in columns for box in _by_rows(column)]
            waiting = []
        else:
            waiting += rows[0]
        rows = rows[count:]
    return found + _by_rows(waiting)


def _columns(rows: Sequence[Sequence[_Box]]) -> list[list[_Box]]:
    """Split the boxes of rows into columns at the gaps that all rows share, from left to right.

    Returns an empty list unless there are several columns with several lines each.
    """
    found: list[list[_Box]] = []
    reach = -math.inf
    for box in sorted((box for row in rows for box in row), key=lambda box: box.left):
        if box.left < reach + GUTTER * box.height:
            found[-1].append(box)
        else:
            found.append([box])
        reach = max(reach, box.right)
    return found if len(found) > 1 and all(map(_is_column, found)) else []


def _is_column(boxes: Sequence[_Box]) -> bool:
    """Whether the boxes are several lines with at most `LEADING` line heights between them."""
    rows = _rows(boxes)
    return len(rows) > 1 and all(
        min(box.top for box in below) - max(box.bottom for box in above) <= LEADING * min(box.height for box in above)
        for above, below in itertools.pairwise(rows)
    )


def _boxes(lines: Sequence[Line], angle: float) -> list[_Box]:
    """Return the boxes of the lines after rotating text, tilted clockwise by `angle` radians, to be level."""
    along, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    found = []
    for line in lines:
        xs, ys = ([x * axis[0] + y * axis[1] for x, y in line.polygon] for axis in (along, down))
        level, height = (min(ys) + max(ys)) / 2, max(ys) - min(ys)
        if len(line.polygon) == 4:  # the polygon's own sides: the bounding box of a tilted line is higher
            level, height = mean(ys), mean(math.dist(line.polygon[a], line.polygon[b]) for a, b in ((0, 3), (1, 2)))
        height = max(height, 1.0)
        found.append(_Box(line, min(xs), max(min(xs) + 1.0, max(xs)), level - height / 2, level + height / 2))
    return found


def _angle(lines: Sequence[Line]) -> float:
    """Return the angle in radians by which the whole text is tilted clockwise, or 0 if the lines do not agree."""
    sides = []
    for line in lines:
        if len(line.polygon) == 4:
            (left, top), (right, bottom), corner = line.polygon[0], line.polygon[1], line.polygon[3]
            length, height = math.dist((left, top), (right, bottom)), math.dist((left, top), corner)
            if length > TALL * height:  # the angle of a short line is mostly noise
                sides.append((math.atan2(bottom - top, right - left), length))
    sides.sort()
    total, passed = sum(length for _, length in sides), 0.0
    for angle, length in sides:
        passed += length
        if passed >= total / 2:
            agree = sum(length for other, length in sides if abs(other - angle) <= AGREE)
            return angle if abs(angle) <= math.pi / 4 and agree >= MOST * total else 0.0
    return 0.0


def _apart(a: _Box, b: _Box) -> float:
    """Return the horizontal gap between two boxes in units of the smaller height, at least 0."""
    return max(0.0, max(a.left, b.left) - min(a.right, b.right)) / min(a.height, b.height)


def _shared(start: float, end: float, other_start: float, other_end: float) -> float:
    return (min(end, other_end) - max(start, other_start)) / min(end - start, other_end - other_start)
