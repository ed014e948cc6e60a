"""Where the nodes of a YAML text begin and end, aliases included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from dgpo_schemas.problems import KeyPath

__all__ = ["Node", "comment_starts", "find", "parse"]


@dataclass(eq=False)
class Node:
    """text[start:end] is the node with its anchor and tag. Of a mapping `entries`, of a list `items`; of an alias
    `target` is the node that has the anchor."""

    start: int
    end: int
    anchor: str | None = None
    flow: bool = False
    text: str | None = None
    """Content of a scalar."""
    entries: list[tuple[Node, Node]] = field(default_factory=list)
    items: list[Node] = field(default_factory=list)
    target: Node | None = None

    @property
    def resolved(self) -> Node:
        """The node itself, or what an alias stands for."""
        return self if self.target is None else self.target


def parse(text: str) -> Node:
    """The root of a text that `parse_yaml` has read."""
    events = yaml.parse(text, Loader=yaml.SafeLoader)
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            break
    return _node(next(events), events, {})


def _node(event: yaml.Event, events: Iterator[yaml.Event], anchors: dict[str, Node]) -> Node:
    start, end = _span(event)
    node = Node(start, end)
    if isinstance(event, yaml.AliasEvent):
        assert event.anchor is not None
        node.target = anchors[event.anchor]
        return node
    assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
    if event.anchor is not None:
        node.anchor = event.anchor
        anchors[event.anchor] = node
    if isinstance(event, yaml.ScalarEvent):
        node.text = event.value
        return node
    node.flow = bool(event.flow_style)
    inside: list[Node] = []
    while not isinstance(following := next(events), yaml.CollectionEndEvent):
        inside.append(_node(following, events, anchors))
    # The end of a block is the next token, which may be many lines away.
    node.end = _span(following)[1] if node.flow else max(node.end, *(one.end for one in inside))
    if isinstance(event, yaml.MappingStartEvent):
        node.entries = list(zip(inside[::2], inside[1::2], strict=True))
    else:
        node.items = inside
    return node


def _span(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None
    assert event.end_mark is not None
    return event.start_mark.index, event.end_mark.index


def find(root: Node, path: KeyPath) -> tuple[Node, Node]:
    """The key and the value at a path, through aliases and merged mappings; of an entry of a list it is twice the
    value. Raises KeyError."""
    key = value = root
    for part in path:
        node = value.resolved
        found = (node.items[part],) * 2 if isinstance(part, int) else _entry(node, part)
        if found is None:
            raise KeyError(part)
        key, value = found
    return key, value


def _entry(node: Node, name: str) -> tuple[Node, Node] | None:
    for key, value in node.entries:
        if key.resolved.text == name:
            return key, value
    for key, value in node.entries:
        if key.text == "<<":
            merged = value.resolved
            for one in merged.items or [merged]:
                found = _entry(one.resolved, name)
                if found is not None:
                    return found
    return None


def comment_starts(text: str) -> list[int]:
    """Where the comments of a text begin, each at its `#`; not those behind the `|` or `>` of a block of text."""
    found, before = [], 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        gap = text[before : token.start_mark.index]
        at = 0
        while (at := gap.find("#", at)) >= 0:
            found.append(before + at)
            at = min((end for end in (gap.find("\n", at), gap.find("\r", at)) if end >= 0), default=len(gap))
        before = max(before, token.end_mark.index)
    return found
