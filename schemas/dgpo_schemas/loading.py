"""Loading of YAML files with the position of every key, so that errors can be reported with their line. Keys are always
strings; `yaml_text` defines the syntax."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dgpo_schemas.decoding import EncodingError, decode, half_character, read_bytes
from dgpo_schemas.odd import in_file, in_plain_text
from dgpo_schemas.problems import ConfigError, KeyPath, Problem, dotted, explain, show
from dgpo_schemas.yaml_text import MAX_DEPTH, MAX_VALUES, TAG, compose, line_of, one_problem

__all__ = ["Document", "Position", "load_yaml", "parse_yaml", "read_text", "read_value", "validate", "without_tabs"]

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a key: its text for messages, and a number for sorting by position in the file."""

    text: str
    order: int


@dataclass(frozen=True, slots=True)
class Document:
    """Content of a file, with the position of each key."""

    source: str
    data: dict[str, Any]
    positions: dict[KeyPath, Position] = field(default_factory=dict)

    def position(self, path: KeyPath) -> Position:
        """Return the position of a key, of the innermost section around it, or of the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.positions:
                return self.positions[path[:end]]
        return Position(self.source, 0)

    def error(self, mistakes: Sequence[tuple[KeyPath, str]]) -> ConfigError:
        """Create a ConfigError with the mistakes in file order."""
        ordered = sorted(mistakes, key=lambda mistake: self.position(mistake[0]).order)
        return ConfigError([Problem(self.position(path).text, dotted(path), message) for path, message in ordered])


def validate(model: type[M], document: Document) -> M:
    """Validate the document as a model. Raises ConfigError with all mistakes in file order."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise document.error(explain(model, document.data, error)) from None


def load_yaml(path: str | Path) -> Document:
    """Read a YAML file that contains a mapping.

    Raises ConfigError if the file is missing, a directory, unreadable, too large, not UTF-8, empty, not a mapping or
    not plain YAML, and for duplicate keys.
    """
    source = str(path)
    return parse_yaml(read_text(Path(path), source)[0], source)


def parse_yaml(text: str, source: str) -> Document:
    """The mapping in the text of a file. Raises ConfigError like `load_yaml`."""
    text = without_tabs(text)
    root = compose(text, source)
    if root is None or (root.tag == f"{TAG}null" and root.value == ""):
        raise one_problem(source, "the file is empty; see `dgpo validate --help` for its content")
    builder = _Builder(source)
    data = builder.build(root, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    if not isinstance(data, dict):
        hint = in_file(text) or ("; put a space after each colon" if isinstance(data, str) and ":" in data else "")
        message = f"must be a mapping of sections (`run: ...`), not {show(data)}{hint}"
        raise one_problem(f"{source}:{line_of(root)}", message)
    return Document(source, data, builder.positions)


def read_text(path: Path, source: str) -> tuple[str, bytes]:
    """The text of a file, and its bytes. Raises ConfigError like `load_yaml`; `source` is the place that it names."""
    try:
        raw = read_bytes(path, MAX_BYTES, "file")
        if len(raw) > MAX_BYTES:
            raise ValueError(f"is larger than {MAX_BYTES // 1024} KiB, the limit for a YAML file")
        return decode(raw), raw
    except ValueError as error:
        line = error.line if isinstance(error, EncodingError) else 0
        raise one_problem(f"{source}:{line}" if line else source, str(error)) from None


def without_tabs(text: str) -> str:
    """JSON with a space for each tab, which PyYAML knows within lines only; JSON has none in its texts."""
    json_with_tabs = text.lstrip().startswith("{") and "\t" in text and _is_json(text)
    return text.replace("\t", " ") if json_with_tabs else text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_value(text: str, where: str) -> tuple[Any, list[KeyPath]]:
    """Parse a single value, such as that of `--set`. Returns it with the key paths of all values in it, starting with
    (). Raises ConfigError with `where` as position."""
    try:
        root = compose(text, where)
        builder = _Builder(where)
        value = None if root is None else builder.build(root, ())
        if builder.problems:
            raise ConfigError(builder.problems)
    except ConfigError as error:
        # A line number within a single value is not useful.
        raise ConfigError([Problem(where, p.key, p.message) for p in error.problems]) from None
    return value, [(), *builder.positions]


class _Builder:
    """Converts nodes to plain data and records the position of every key."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: dict[KeyPath, Position] = {}
        self.problems: list[Problem] = []
        self._values = 0
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """Convert a node. Aliases are converted anew at each use, so that each use has its own positions."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise one_problem(self.source, f"has more than {MAX_VALUES} values after expanding aliases")
        if any(node is outer for outer in self._open):
            raise one_problem(f"{self.source}:{line_of(node)}", "an alias refers to a node that contains it")
        if len(self._open) > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels after expanding aliases"
            raise one_problem(f"{self.source}:{line_of(node)}", message)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        self._open.append(node)
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
                return [self._entry(item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
                return self._mapping(node, path)
        finally:
            self._open.pop()
        return self._refuse_tag(node, path)

    def _entry(self, node: yaml.Node, path: KeyPath) -> Any:
        self.positions[path] = Position(f"{self.source}:{line_of(node)}", line_of(node))
        return self.build(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{TAG}merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "":
                self._problem(key_node, path, "a key must be a non-empty string")
                continue
            key, line = self._text(key_node, path, "the key "), line_of(key_node)
            if key in lines:
                self._problem(key_node, (*path, key), f"duplicate key, first used in line {lines[key]}")
                continue
            lines[key] = line
            self.positions[*path, key] = Position(f"{self.source}:{line}", line)
            data[key] = self.build(value_node, (*path, key))
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                self._problem(other, path, "`<<` can merge only mappings")
                continue
            positions, self.positions = self.positions, {}
            for key, value in self.build(other, path).items():
                data.setdefault(key, value)
            merged_positions, self.positions = self.positions, positions
            for known, position in merged_positions.items():  # explicit keys take precedence over merged ones
                self.positions.setdefault(known, position)
        return data

    def _text(self, node: yaml.ScalarNode, path: KeyPath, what: str = "") -> str:
        """Return the text of a node. A surrogate pair written as two JSON escapes is joined."""
        text = str(node.value)
        if half_character(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            text = str(node.value) if "\ufffd" in text else text
        reason = half_character(text) or ("contains a null character; delete it" if "\0" in text else "")
        if not reason and node.style is None:
            reason = in_plain_text(text, key=bool(what))
        if reason:
            self._problem(node, path, f"{what}{show(text)} {reason}", column=True)
        return text

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, kind = str(node.value), str(node.tag).removeprefix(TAG)
        try:
            if kind in ("str", "merge"):
                return self._text(node, path)
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                whole = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))
                str(whole)  # raises ValueError for thousands of digits
                return whole
            if kind == "float":
                number = float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
                if math.isinf(number) and "inf" not in text.casefold():
                    self._problem(node, path, f"{show(text)} is out of range for a 64-bit number (1.8e308)")
                return number
        except (ValueError, KeyError):  # `!!int x`, or a number with thousands of digits
            self._problem(node, path, f"{show(text)} is not a valid {kind}")
            return None
        return self._refuse_tag(node, path)

    def _refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        tag = str(node.tag).replace(TAG, "!!")
        self._problem(node, path, f"the tag {tag} is not allowed; use plain strings, numbers, lists and mappings")

    def _problem(self, node: yaml.Node, path: KeyPath, message: str, *, column: bool = False) -> None:
        message += f" (column {node.start_mark.column + 1})" if column else ""
        self.problems.append(Problem(f"{self.source}:{line_of(node)}", dotted(path), message))
