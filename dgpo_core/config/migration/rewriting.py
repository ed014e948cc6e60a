"""Rewriting a file with the new names. Only the characters of the names are replaced, so comments, quotes, order and
blank lines stay; what comes out is read again and compared before anything is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dgpo_core.config.migration.edits import Edits
from dgpo_core.config.migration.lifting import lift
from dgpo_core.config.migration.names import Renamed, rename
from dgpo_core.config.migration.nodes import Node, find, parse
from dgpo_schemas.loading import Document, parse_yaml, without_tabs
from dgpo_schemas.problems import ConfigError, KeyPath
from dgpo_schemas.yaml_text import one_problem

__all__ = ["Rewritten", "rewrite"]


@dataclass(frozen=True)
class Rewritten:
    """The new text, and what was changed in the old one: (place, key, message)."""

    text: str
    changes: list[str]


def rewrite(text: str, source: str, kind_of: Callable[[Document], str]) -> Rewritten:
    """The text of a file with new names.

    kind_of: tells which kind of file a document is. Raises ConfigError, with every reason and its line, for a text that
    cannot be read or rewritten.
    """
    document = parse_yaml(text, source)
    kind = kind_of(document)
    found = rename(document.data, kind)
    if found.conflicts:
        raise document.error(found.conflicts)
    if not found.changes:
        return Rewritten(text, [])
    edits = _edits(text, document, found)
    edits.keep_columns()
    new = edits.applied()
    _check(text, new, found.data, source)
    shown = document.error([(change.where, change.message) for change in found.changes])
    return Rewritten(new, list(map(str, shown.problems)))


def _edits(text: str, document: Document, found: Renamed) -> Edits:
    """Raises ConfigError for a change that has no place of its own in the text."""
    plain = without_tabs(text)
    root, edits = parse(plain), Edits(plain, text)
    lifted: dict[KeyPath, dict[str, str]] = {}
    mistakes: list[tuple[KeyPath, str]] = []
    for change in found.changes:
        key, value = find(root, change.where)
        try:
            if change.lifted:
                lifted.setdefault(change.where[:-1], {})[str(change.where[-1])] = str(change.key)
            elif change.key is not None:
                _replace(edits, key, change.key)
            if change.value is not None:
                _replace(edits, value.resolved, change.value)
        except ValueError as error:
            mistakes.append((change.where, str(error)))
    for where, names in lifted.items():
        key, value = find(root, where)
        inside_flow = find(root, where[:-1])[1].resolved.flow
        try:
            lift(edits, key, value, names, inside_flow=inside_flow)
        except ValueError as error:
            mistakes.append((where, str(error)))
    if mistakes:
        raise document.error(mistakes)
    return edits


def _replace(edits: Edits, node: Node, new: str) -> None:
    """A scalar by another one in the same quotes. Raises ValueError for one that an alias stands for."""
    if node.text is None:
        raise ValueError("is an alias, which cannot be renamed; write the text instead")
    written = edits.text[node.start : node.end]
    quoted = re.search(r"""(["'])(?:(?!\1).)*\1$""", written, re.DOTALL)
    if quoted is not None:
        edits.replace(node.start + quoted.start() + 1, node.end - 1, new)
    elif written.endswith(node.text):
        edits.replace(node.end - len(node.text), node.end, new)
    else:
        raise ValueError("is written over several lines; write it in one")


def _check(old: str, new: str, wanted: Any, source: str) -> None:
    """Raise ConfigError unless a new text has the wanted data and the comments of the old one."""
    try:
        same = repr(parse_yaml(new, source).data) == repr(wanted)
    except ConfigError:
        same = False
    if not same:
        raise one_problem(
            source,
            "cannot be rewritten, probably because an alias (`*name`) stands in two sections that have other new "
            "names; write the sections out, or change the keys by hand",
        )
    if _comments(old, source) != _comments(new, source):
        raise one_problem(source, "cannot be rewritten without changing its comments; change the keys by hand")


def _comments(text: str, source: str) -> Counter[str]:
    """The comments of a text, as another library than the one that placed the edits finds them."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.tokens import CommentToken

    found: Counter[str] = Counter()

    def collect(comment: Any) -> None:
        if isinstance(comment, CommentToken):
            found.update(line.strip() for line in comment.value.splitlines() if line.strip().startswith("#"))
        for one in comment if isinstance(comment, list) else ():
            collect(one)

    try:
        for token in YAML().scan(without_tabs(text)):
            collect(getattr(token, "_comment", None))
    except YAMLError as error:
        raise one_problem(source, f"cannot be rewritten: {error}") from None
    return found
