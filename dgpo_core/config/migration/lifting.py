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
    entries = value.entries
    if value.target is not None or any(inner.text not in names for inner, _ in entries):
        raise ValueError("is an alias or has `<<`, which cannot be rewritten; write the section out")
    if len(entries) == 1 and value.flow:
        _unwrap(edits, key, value, names)
        return
    if value.anchor is not None:
        raise ValueError(f"has the anchor &{value.anchor}, which would lose its section; write out what `*` stands for")
    for inner, _ in entries:
        assert inner.text is not None
        edits.replace(inner.end - len(inner.text) - _quote(edits, inner), inner.end - _quote(edits, inner),
                      names[inner.text])  # fmt: skip
    first, last = entries[0], entries[-1]
    indent = " " * edits.column(key.start)
    if not value.flow:
        edits.replace(key.start, first[0].start, _head(edits, key.end, first[0].start, indent))
        _dedent(edits, first[0], value.end, edits.column(first[0].start) - edits.column(key.start))
        return
    edits.replace(key.start, first[0].start, "".join(
        f"{comment}{edits.newline}{indent}" for comment in edits.comments(key.end, first[0].start)
    ))  # fmt: skip
    if not inside_flow:
        for (_, before), (after, _) in pairwise(entries):
            edits.replace(before.end, after.start, _lines(edits, before.end, after.start, indent) or
                          f"{edits.newline}{indent}")  # fmt: skip
    edits.replace(last[1].end, value.end, _tail(edits, last[1].end, value.end, indent))


def _unwrap(edits: Edits, key: Node, value: Node, names: Mapping[str, str]) -> None:
    """`ema: {slow: S}` as `ema: S`: the name goes to the outer key."""
    inner, content = value.entries[0]
    assert inner.text is not None
    assert key.text is not None
    last = key.text.rpartition(".")[2]
    end = key.end - _quote(edits, key)
    edits.replace(end - len(last), end, names[inner.text].rpartition(".")[2])
    brace = edits.text.index("{", value.start)
    indent = " " * (edits.column(key.start) + 2)
    before = "".join(f"{comment}{edits.newline}{indent}" for comment in edits.comments(brace, content.start))
    edits.replace(brace, content.start, before)
    edits.replace(content.end, value.end, _tail(edits, content.end, value.end, indent))


def _quote(edits: Edits, node: Node) -> int:
    """1 for a node in quotes, else 0."""
    return int(edits.text[node.end - 1] in "\"'")


def _lines(edits: Edits, start: int, end: int, indent: str) -> str:
    """The comments between two positions, each ending its line; nothing if there are none."""
    return "".join(f"  {comment}{edits.newline}{indent}" for comment in edits.comments(start, end))


def _tail(edits: Edits, start: int, end: int, indent: str) -> str:
    """The comments before a closing brace. Raises ValueError if something follows it in its line."""
    comments = edits.comments(start, end)
    if comments and edits.text[end : edits.line_end(end)].strip():
        raise ValueError("has a comment before `}` and something behind it; put one of the two into a line of its own")
    return (f"  {comments[0]}" if comments else "") + "".join(f"{edits.newline}{indent}{one}" for one in comments[1:])


def _head(edits: Edits, start: int, end: int, indent: str) -> str:
    """What stands between a key that goes and its first entry: comments and blank lines."""
    first, *middle = re.split("\r\n|\r|\n", edits.text[start:end])[:-1]
    if edits.comments(start, start + len(first)):
        middle.insert(0, first[first.index("#") :])
    return "".join((line.strip() and line.strip()) + edits.newline + indent for line in middle)


def _dedent(edits: Edits, first: Node, end: int, by: int) -> None:
    """Take spaces from the lines after that of a node, up to a position, and from the comments that follow there."""
    outer = edits.column(first.start) - by
    starts, before = edits.comment_starts, -1
    aligned = [edits.column(at) for at in starts if at < edits.line_end(first.start) and at >= first.start]
    column = aligned[0] if aligned else -1
    line = _next_line(edits, first.start)
    while line is not None:
        stop = edits.line_end(line)
        content = edits.text[line:stop]
        lead = len(content) - len(content.lstrip(" "))
        comment = next((at for at in starts if line <= at < stop), None)
        only_comment = comment is not None and line + lead == comment
        if line > end and content.strip() and not (only_comment and lead > outer):
            break
        if comment is not None and not only_comment:
            column = edits.column(comment)
        if content.strip() and not (only_comment and lead == column and lead > outer + by):
            taken = min(by, max(0, lead - outer))
            if taken:
                edits.replace(line, line + taken, "")
        before, line = line, _next_line(edits, line)
        if line is not None and line <= before:
            break


def _next_line(edits: Edits, position: int) -> int | None:
    found = re.compile("\r\n|\r|\n").search(edits.text, position)
    return None if found is None or found.end() >= len(edits.text) else found.end()
