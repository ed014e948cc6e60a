"""Reading YAML files that people write, so that every mistake in them can be shown with its line.

The rules are those of YAML 1.2 where 1.1 sets traps: `no` and `on` are texts (a switch is `true` or `false`), `3e-4`
is a number, `010` is ten, `1:30` and dates are texts. Keys are always texts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dgpo_schemas.decoding import EncodingError, decode, half_character
from dgpo_schemas.odd import in_file, in_plain_text
from dgpo_schemas.problems import ConfigError, KeyPath, Problem, dotted, explain, show

__all__ = ["Document", "Position", "apply_overrides", "apply_settings", "dump_yaml", "load_yaml", "validate"]

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 256 * 1024
MAX_DEPTH = 40
MAX_VALUES = 20_000
"""A run file has a few hundred values; more is a mistake, or aliases that multiply."""

TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a key stands: text for people, and a number that puts problems in the file's order."""

    text: str
    order: int


@dataclass(frozen=True, slots=True)
class Document:
    """A file's content, and where each of its keys stands."""

    source: str
    data: dict[str, Any]
    positions: dict[KeyPath, Position] = field(default_factory=dict)

    def position(self, path: KeyPath) -> Position:
        """Of a key, or of the nearest section around it; the file itself if there is none."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.positions:
                return self.positions[path[:end]]
        return Position(self.source, 0)

    def error(self, mistakes: Sequence[tuple[KeyPath, str]]) -> ConfigError:
        """The mistakes in the file's order."""
        ordered = sorted(mistakes, key=lambda mistake: self.position(mistake[0]).order)
        return ConfigError([Problem(self.position(path).text, dotted(path), message) for path, message in ordered])


def validate(model: type[M], document: Document) -> M:
    """The document as a model. Raises ConfigError with every mistake, in the file's order."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise document.error(explain(model, document.data, error)) from None


# -- reading ------------------------------------------------------------------------------------------------------


def load_yaml(path: str | Path) -> Document:
    """Read a mapping.

    Raises ConfigError for a file that is missing, a directory, unreadable, too large, not UTF-8, empty, not a mapping
    or not plain YAML, and for keys that stand twice.
    """
    source = str(path)
    text = _read(Path(path), source)
    if text.lstrip().startswith("{") and "\t" in text and _is_json(text):
        text = text.replace("\t", " ")  # PyYAML knows tabs within lines only; JSON has none in its texts
    root = _compose(text, source)
    if root is None or (root.tag == f"{TAG}null" and root.value == ""):
        raise _error(source, "the file is empty; see `dgpo validate --help` for what belongs in it")
    builder = _Builder(source)
    data = builder.build(root, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    if not isinstance(data, dict):
        hint = in_file(text) or ("; a space must follow each colon" if isinstance(data, str) and ":" in data else "")
        raise _error(f"{source}:{_line(root)}", f"must be a mapping of sections (`run: ...`), not {show(data)}{hint}")
    return Document(source, data, builder.positions)


def _read(path: Path, source: str) -> str:
    try:
        with path.open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise _error(source, "there is no such file") from None
    except IsADirectoryError:
        raise _error(source, "is a directory, not a file") from None
    except (OSError, ValueError) as error:
        raise _error(source, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MAX_BYTES:
        raise _error(source, f"is larger than {MAX_BYTES // 1024} KiB: that is no run file")
    try:
        return decode(raw)
    except EncodingError as error:
        raise _error(f"{source}:{error.line}" if error.line else source, str(error)) from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _error(where: str, message: str) -> ConfigError:
    return ConfigError([Problem(where, "", message)])


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's reader with YAML 1.2's scalars and limits on nesting and on the number of values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.nodes += not (isinstance(parent, yaml.MappingNode) and index is None)  # that is a key
        if self.nodes > MAX_VALUES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES} values", problem_mark=mark)
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, with quotes around texts that YAML 1.1 or 1.2 would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Line breaks other than \n survive only where they are escaped; some characters are refused without quotes.
        style = '"' if re.search("[\r\x85\u2028\u2029]", data) or in_plain_text(data, key=True) else None
        return self.represent_scalar(f"{TAG}str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _tag, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^<<$", ["<"]),
):
    for _either in (_Loader, _Dumper):
        _either.add_implicit_resolver(f"{TAG}{_tag}", re.compile(_pattern), _first)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as the text of a file that `load_yaml` reads back as the same data."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _place(text: str, position: int) -> tuple[int, int]:
    """Line and column, from 1."""
    lines = re.split("\r\n?|\n", text[:position])
    return len(lines), len(lines[-1]) + 1


def _compose(text: str, source: str) -> yaml.Node | None:
    separator = re.search("[\x85\u2028\u2029]", text)
    if separator is not None:  # YAML 1.1 ends a line there, 1.2 and editors do not
        number, at = _place(text, separator.start())
        code = f"{ord(separator[0]):04X}"
        message = f"not YAML: the separator U+{code} is not allowed (column {at}); delete it, or write \\u{code} in"
        raise _error(f"{source}:{number}", f"{message} double quotes")
    try:
        loader = _Loader(text)
        try:
            node: yaml.Node | None = loader.get_single_node()
            return node
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        number, at = _place(text, error.position)
        message = f"not YAML: the character U+{error.character:04X} is not allowed (column {at}); delete it"
        raise _error(f"{source}:{number}", message) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        column = f" (column {mark.column + 1})" if mark else ""
        context = f" {error.context}" if error.context and error.context != error.problem else ""
        raise _error(place, f"not YAML: {error.problem}{context}{column}{_hint(error, text)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as \UFFFFFFFF, which is no character
        raise _error(source, f"not YAML: {error}") from None


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    if "\\t" in str(error.problem):
        mark = error.problem_mark
        before = re.split("\r\n?|\n", text)[mark.line][: mark.column] if mark else ""
        return "; write a space there, not a tab" if before.strip() else "; indent with spaces, not tabs"
    if odd := in_file(text):
        return odd
    if "cannot start any token" in str(error.problem) or "scanning an alias" in str(error.context):
        return "; put a text that begins like this in quotes"
    if "mapping values are not allowed" in str(error.problem):
        return "; put a text that contains `: ` in quotes"
    return ""


class _Builder:
    """Nodes to plain data, with the position of every key."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: dict[KeyPath, Position] = {}
        self.problems: list[Problem] = []
        self._values = 0
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of a node. Aliases are built anew, so that each place has its own positions."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise _error(self.source, f"has more than {MAX_VALUES} values once its aliases are followed")
        if any(node is outer for outer in self._open):
            raise _error(f"{self.source}:{_line(node)}", "an alias refers to what it is a part of")
        if len(self._open) > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels once its aliases are followed"
            raise _error(f"{self.source}:{_line(node)}", message)
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
        self.positions[path] = Position(f"{self.source}:{_line(node)}", _line(node))
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
                self._problem(key_node, path, "a key must be a text that is not empty")
                continue
            key, line = self._text(key_node, path, "the key "), _line(key_node)
            if key in lines:
                self._problem(key_node, (*path, key), f"stands here twice, first in line {lines[key]}")
                continue
            lines[key] = line
            self.positions[*path, key] = Position(f"{self.source}:{line}", line)
            data[key] = self.build(value_node, (*path, key))
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                self._problem(other, path, "`<<` merges mappings only")
                continue
            own, self.positions = self.positions, {}
            for key, value in self.build(other, path).items():
                data.setdefault(key, value)
            merged_positions, self.positions = self.positions, own
            for known, position in merged_positions.items():  # a key's own place wins over the merged one's
                self.positions.setdefault(known, position)
        return data

    def _text(self, node: yaml.ScalarNode, path: KeyPath, what: str = "") -> str:
        """The text of a node. JSON's escapes for two halves of a character are one."""
        text = str(node.value)
        if half_character(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            text = str(node.value) if "\ufffd" in text else text
        reason = half_character(text) or ("holds a zero character, which no text here does" if "\0" in text else "")
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
                str(whole)  # of thousands of digits, which nothing could show either
                return whole
            if kind == "float":
                number = float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text, flags=re.IGNORECASE))
                if math.isinf(number) and "inf" not in text.casefold():
                    self._problem(node, path, f"{show(text)} is larger than any number of 64 bits (1.8e308)")
                return number
        except (ValueError, KeyError):  # `!!int x`, or a number with thousands of digits
            self._problem(node, path, f"{show(text)} is no {kind}")
            return None
        return self._refuse_tag(node, path)

    def _refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        tag = str(node.tag).replace(TAG, "!!")
        self._problem(node, path, f"the tag {tag} is not allowed; write plain texts, numbers, lists and mappings")

    def _problem(self, node: yaml.Node, path: KeyPath, message: str, *, column: bool = False) -> None:
        message += f" (column {node.start_mark.column + 1})" if column else ""
        self.problems.append(Problem(f"{self.source}:{_line(node)}", dotted(path), message))


# -- overrides ----------------------------------------------------------------------------------------------------

_SHORT_FORMS = {"use": "use", "options": "use", "file": "file", "limit": "file"}
"""Key to be set inside a text -> what the text stands for: `sampler: flow-euler` is `sampler: {use: flow-euler}`."""


def apply_overrides(document: Document, overrides: Sequence[str], *, flag: str = "--set", under: str = "") -> Document:
    """The document with `KEY=VALUE` settings, such as `rewards.0.weight=2`; values are read as YAML.

    `flag` is what gave the settings on the command line; `under`, such as "options.", goes before every key.
    Raises ConfigError for every setting that cannot be read or has no place.
    """
    changed = Document(document.source, deepcopy(document.data), dict(document.positions))
    problems: list[Problem] = []
    for number, override in enumerate(overrides):
        position = Position(f"{flag} {override}", MAX_BYTES + number)
        try:
            if reason := half_character(override):
                raise ValueError(reason)
            _set(changed, under + override, position)
        except ConfigError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(Problem(position.text, "", str(error)))
    if problems:
        raise ConfigError(problems)
    return changed


def apply_settings(document: Document, settings: Sequence[tuple[str, Any, Position]]) -> Document:
    """The document with values at dotted keys; mistakes in them are shown at the position given with each.

    Raises ConfigError for every key that has no place.
    """
    changed = Document(document.source, deepcopy(document.data), dict(document.positions))
    problems: list[Problem] = []
    for key, value, position in settings:
        try:
            _put(changed, key, deepcopy(value), iter([()]), position)
        except ValueError as error:
            problems.append(Problem(position.text, key, str(error)))
    if problems:
        raise ConfigError(problems)
    return changed


def _set(document: Document, override: str, position: Position) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ValueError("must be KEY=VALUE, such as optimiser.learning_rate=1e-4")
    value, inner = _value(text, position.text)
    _put(document, key.strip(), value, inner, position)


def _put(document: Document, key: str, value: Any, inner: Iterator[KeyPath], position: Position) -> None:
    """Set a dotted key; `inner` are the paths within the value, (), ("use",) and so on."""
    names = key.split(".")
    if not all(names):
        raise ValueError("must be a dotted key, such as optimiser.learning_rate")
    here: Any = document.data
    path: KeyPath = ()
    for i, name in enumerate(names):
        part = _part(here, name, path)
        path = (*path, part)
        if i == len(names) - 1:
            break
        if isinstance(here, dict) and here.get(name) is None:
            here[name] = {}
            document.positions[path] = position
        elif isinstance(here, list) and part == len(here):
            here.append({})
            document.positions[path] = position
        elif isinstance(here[part], str) and names[i + 1] in _SHORT_FORMS:
            here[part] = {_SHORT_FORMS[names[i + 1]]: here[part]}
        here = here[part]
    if isinstance(here, list) and path[-1] == len(here):
        here.append(value)
    else:
        here[path[-1]] = value
    for old in [known for known in document.positions if known[: len(path)] == path]:
        del document.positions[old]
    for known in inner:
        document.positions[path + known] = position


def _part(here: Any, name: str, path: KeyPath) -> str | int:
    """The name as a key of a mapping or as an index of a list."""
    if isinstance(here, dict):
        return name
    if not isinstance(here, list):
        raise ValueError(f"{dotted(path)} is {show(here)}, it has no {name!r} inside")
    if not name.isascii() or not name.isdigit() or int(name) > len(here):
        entries = f"0 to {len(here) - 1}" if here else "none"
        raise ValueError(f"{dotted(path)} is a list: {name!r} is none of its entries ({entries}; {len(here)} appends)")
    return int(name)


def _value(text: str, where: str) -> tuple[Any, Iterator[KeyPath]]:
    try:
        root = _compose(text, where)
        builder = _Builder(where)
        value = None if root is None else builder.build(root, ())
        if builder.problems:
            raise ConfigError(builder.problems)
    except ConfigError as error:
        # The line within a setting's value says nothing.
        raise ConfigError([Problem(where, p.key, p.message) for p in error.problems]) from None
    return value, iter([(), *builder.positions])
