"""Moving the entries of a section up into the section around it: `ema: {fast: F, slow: S}` becomes `ema_fast: F` and
`ema: S`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from dgpo_core.config.migration.edits import Edits
from dgpo_core.config.migration.nodes import Node

__all__ = ["lift"]


def lift(edits: Edits, key: Node, value: Node, names: Mapping[str, str], *, inside_flow: bool) -> None:
    """Edit a section away. names: each of its keys to the key that it becomes; inside_flow: whether the section around
    it is in braces. Raises ValueError for a section with anchors, aliases or merged mappings in these places."""
    if value.target is not None or any(inner.text not in names for inner, _ in value.entries):
        raise ValueError("is an alias or has `<<`, which cannot be rewritten; write the section out")
    if value.flow and len(value.entries) == 1:
        _unwrap(edits, key, value, names)
        return
    if value.anchor is not None:
        raise ValueError(f"has the anchor &{value.anchor}, which would lose its section; write out what `*` stands for")
    for inner, _ in value.entries:
        _rename(edits, inner, str(inner.text), names[str(inner.text)])
    if value.flow:
        _remove_braces(edits, key, value, inside_flow=inside_flow)
    else:
        _remove_line(edits, key, value)
        first = value.entries[0][0].start
        _dedent(edits, first, value.end, edits.column(first) - edits.column(key.start))


def _rename(edits: Edits, key: Node, old: str, new: str) -> None:
    end = key.end - (edits.text[key.end - 1] in "\"'")
    edits.replace(end - len(old), end, new)


def _unwrap(edits: Edits, key: Node, value: Node, names: Mapping[str, str]) -> None:
    """`ema: {slow: S}` as `ema: S`: the outer key gets the name."""
    inner, content = value.entries[0]
    _rename(edits, key, str(key.text), names[str(inner.text)])
    indent = " " * (edits.column(key.start) + 2)
    brace = edits.text.index("{", value.start)
    before = "".join(f"{comment}{edits.newline}{indent}" for comment in edits.comments(brace, content.start))
    edits.replace(brace, content.start, before)
    edits.replace(content.end, value.end, _tail(edits, content.end, value.end, indent))


def _remove_braces(edits: Edits, key: Node, value: Node, *, inside_flow: bool) -> None:
    """`ema: {fast: F, slow: S}` as `ema_fast: F` and `ema: S`, on lines of their own unless inside of other braces."""
    (first, _), (_, last) = value.entries[0], value.entries[-1]
    indent = " " * edits.column(key.start)
    before = "".join(f"{comment}{edits.newline}{indent}" for comment in edits.comments(key.end, first.start))
    edits.replace(key.start, first.start, before)
    for (_, content), (following, _) in pairwise(() if inside_flow else value.entries):
        comments = edits.comments(content.end, following.start)
        ends = "".join(f"  {comment}{edits.newline}{indent}" for comment in comments)
        edits.replace(content.end, following.start, ends or f"{edits.newline}{indent}")
    edits.replace(last.end, value.end, _tail(edits, last.end, value.end, indent))


def _tail(edits: Edits, start: int, end: int, indent: str) -> str:
    """The comments before a closing brace. Raises ValueError if something follows it in its line."""
    comments = edits.comments(start, end)
    if comments and edits.text[end : edits.line_end(end)].strip():
        raise ValueError("has a comment before `}` and something behind it; put one of the two into a line of its own")
    return (f"  {comments[0]}" if comments else "") + "".join(f"{edits.newline}{indent}{one}" for one in comments[1:])


def _remove_line(edits: Edits, key: Node, value: Node) -> None:
    """Remove the line of a key; the comments and the blank lines that follow it stay."""
    start, first = edits.line_start(key.start), value.entries[0][0].start
    indent = " " * edits.column(key.start)
    behind, *lines = re.split("\r\n|\r|\n", edits.text[key.end : first])[:-1]
    lines = [line.strip() for line in lines]
    if edits.comments(key.end, key.end + len(behind)):
        lines.insert(0, behind[behind.index("#") :])
    above = "".join((line and indent + line) + edits.newline for line in lines)
    if edits.text[start : key.start].strip():  # the key stands behind the `-` of a list
        start, above = key.start, above.removeprefix(indent)
    edits.replace(start, first, above + ("" if start == key.start and not above else indent))


def _dedent(edits: Edits, start: int, end: int, by: int) -> None:
    """Take spaces from the lines below that of `start` up to `end`, and from the comments that follow there. A comment
    below another one at the end of a line, in the same column, stays in that column."""
    outer, column, line = edits.column(start) - by, -1, edits.line_start(start)
    while line < len(edits.text):
        stop = edits.line_end(line)
        content = edits.text[line:stop]
        lead = len(content) - len(content.lstrip(" "))
        comment = next((at for at in edits.comment_starts if line <= at < stop), -1)
        only_comment = comment == line + lead
        if line > end and content.strip() and not (only_comment and lead > outer):
            break
        if comment >= 0 and not only_comment:
            column = edits.column(comment)
        if line > start and content.strip() and not (only_comment and lead == column):
            taken = min(by, max(0, lead - outer))
            if taken:
                edits.replace(line, line + taken, "")
        line = edits.next_line(stop)
