"""Replacements of parts of a text."""

from __future__ import annotations

import re
from functools import cached_property

from dgpo_core.config.migration.nodes import comment_starts

__all__ = ["Edits"]


class Edits:
    """Replacements, collected and then applied together.

    text: what the positions belong to; original: the same with its tabs, which takes the edits.
    """

    def __init__(self, text: str, original: str) -> None:
        self.text = text
        self.original = original
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self._edits: dict[tuple[int, int], str] = {}

    def replace(self, start: int, end: int, new: str) -> None:
        """Put `new` in place of text[start:end]. Raises ValueError if that has another replacement already, as in a
        section that an alias stands for."""
        if self._edits.setdefault((start, end), new) != new:
            raise ValueError("an alias stands for it where it has another new name; write the section out")

    def line_start(self, position: int) -> int:
        """Where the line of a position begins."""
        return max(self.text.rfind("\n", 0, position), self.text.rfind("\r", 0, position)) + 1

    def column(self, position: int) -> int:
        """Characters of the line before a position."""
        return position - self.line_start(position)

    def line_end(self, position: int) -> int:
        """Where the line of a position ends, before its line break."""
        found = re.compile("[\r\n]").search(self.text, position)
        return len(self.text) if found is None else found.start()

    def next_line(self, end: int) -> int:
        """Where the line behind a line that ends at `end` begins."""
        return end + (2 if self.text[end : end + 2] == "\r\n" else 1)

    def comments(self, start: int, end: int) -> list[str]:
        """The comments that begin in text[start:end]."""
        return [self.text[at : self.line_end(at)] for at in self.comment_starts if start <= at < end]

    @cached_property
    def comment_starts(self) -> list[int]:
        """Where comments begin."""
        return comment_starts(self.text)

    def keep_columns(self) -> None:
        """Put comments at the end of changed lines into the column where they were, at least one space away."""
        for at in self.comment_starts:
            line = self.line_start(at)
            before = self.text[line:at].rstrip(" ")
            gap = at - line - len(before)
            if not before or gap == 0 or any(start <= at < end for start, end in self._edits):
                continue
            shift = self._shift(line, at - gap)
            if shift:
                self.replace(at - gap, at, " " * max(min(gap, 2), gap - shift))

    def _shift(self, line: int, position: int) -> int:
        """How many columns the edits of a line move a position in it to the right."""
        shift = 0
        for (start, end), new in sorted(self._edits.items()):
            if not (line < end <= position or (line <= start and end <= position)):
                continue
            if start < line:  # the edit joins this line to another one
                shift += len(new.rpartition("\n")[2]) + (0 if "\n" in new else self.column(start)) - (end - line)
            else:
                shift += len(new) - (end - start)
        return shift

    def applied(self) -> str:
        """The text with every replacement."""
        parts, done = [], 0
        for (start, end), new in sorted(self._edits.items()):
            if start < done:
                continue  # inside of what is replaced; the comparison of the data finds whether that was right
            parts += [self.original[done:start], new]
            done = end
        return "".join([*parts, self.original[done:]])
