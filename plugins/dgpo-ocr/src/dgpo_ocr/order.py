"""In which order people read the lines that an engine found, wherever it found them.

Engines sort by the upper edge, in steps of pixels: of two words in one line, the one that stands a few pixels higher
comes first. Here words are in one row if their heights overlap, whatever their size.
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
"""Two words are in one row if they share at least this part of the lower one's height, ..."""
DOUBTFUL = 0.1
"""... and perhaps if they share this part: a word half a letter above its line may be in it or a row of its own, ..."""
STACKED = 0.3
"""... unless they share more than this part of the narrower one's width: then they are above each other."""
TALL = 1.5
"""A word so many times as high as two lines beside it stands beside both, as a price beside the two lines of a name."""
GUTTER = 1.0
"""Columns are apart by at least so many heights of a line."""
LEADING = 2.0
"""The lines of a column are apart by at most so many heights of a line."""
FAR = 0.05
"""A neighbor one height farther away counts as much as one that shares so much less of the height: a line that climbs
word by word goes on with the next word, not with the one far off at its level."""
AGREE, MOST = math.radians(3), 0.75
"""Text is turned level if this part of its length agrees on an angle, give or take so much."""


@dataclass(frozen=True, slots=True)
class _Box:
    """A line, its place along and across the direction of reading, in pixels: left < right, top < bottom."""

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
        """Part of the lower one's height, at most 1; negative where they are apart."""
        return _shared(self.top, self.bottom, other.top, other.bottom)

    def shares_width(self, other: _Box) -> float:
        """Part of the narrower one's width, likewise."""
        return _shared(self.left, self.right, other.left, other.right)


def readings(lines: Sequence[Line]) -> list[list[Line]]:
    """The ways in which lines can be read, each with all of them, the likeliest first: row after row, each from left to
    right; with wider rows, where a word may be in one or not; and, where several rows leave the same gap free, column
    after column. Mostly they are one and the same.

    The order of `lines` does not matter, but for lines in the very same place. Text may be turned by up to 45 degrees.
    """
    if not all(line.polygon for line in lines):  # an engine that does not say where
        return [list(lines)]
    angle = _angle(lines)
    found: list[list[Line]] = []
    for turned in (angle, 0.0) if 0 < abs(angle) <= AGREE else (angle,):  # a box may lean by chance
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
        tall = max(block, key=lambda box: box.height)  # what stands left and right of it are texts of their own
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
    """Boxes that stand beside each other, from top to bottom. Those that share most of their height, and of these those
    that are near, are joined first, so that one between two lines goes to the right one, and no row has boxes above
    each other."""
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
    """Rows, in a list with others where a tall box stands beside all of them."""
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
    """The boxes of rows, apart where a gutter runs through all rows, from left to right; none unless there are several
    columns, of several lines each."""
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
    """Whether these are several lines, none far below the one before."""
    rows = _rows(boxes)
    return len(rows) > 1 and all(
        min(box.top for box in below) - max(box.bottom for box in above) <= LEADING * min(box.height for box in above)
        for above, below in itertools.pairwise(rows)
    )


def _boxes(lines: Sequence[Line], angle: float) -> list[_Box]:
    """Where lines are once the text, turned clockwise by an angle in radians, is level."""
    along, down = (math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))
    found = []
    for line in lines:
        xs, ys = ([x * axis[0] + y * axis[1] for x, y in line.polygon] for axis in (along, down))
        level, height = (min(ys) + max(ys)) / 2, max(ys) - min(ys)
        if len(line.polygon) == 4:  # its own sides, because a box that is turned further reaches higher
            level, height = mean(ys), mean(math.dist(line.polygon[a], line.polygon[b]) for a, b in ((0, 3), (1, 2)))
        height = max(height, 1.0)
        found.append(_Box(line, min(xs), max(min(xs) + 1.0, max(xs)), level - height / 2, level + height / 2))
    return found


def _angle(lines: Sequence[Line]) -> float:
    """The angle in radians by which the whole text is turned clockwise; 0 where the lines do not agree on one."""
    sides = []
    for line in lines:
        if len(line.polygon) == 4:
            (left, top), (right, bottom), corner = line.polygon[0], line.polygon[1], line.polygon[3]
            length, height = math.dist((left, top), (right, bottom)), math.dist((left, top), corner)
            if length > TALL * height:  # the direction of a short one is mostly chance
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
    """The gap between two boxes in heights of the lower one, at least 0."""
    return max(0.0, max(a.left, b.left) - min(a.right, b.right)) / min(a.height, b.height)


def _shared(start: float, end: float, other_start: float, other_end: float) -> float:
    return (min(end, other_end) - max(start, other_start)) / min(end - start, other_end - other_start)
