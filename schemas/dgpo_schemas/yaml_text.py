"""YAML syntax of all files that dgpo reads and writes.

Scalars follow YAML 1.2: `no` and `on` are strings (booleans are `true` and `false`), `3e-4` is a number, `010` is ten,
`1:30` and dates are strings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from dgpo_schemas.odd import in_file, in_plain_text
from dgpo_schemas.problems import ConfigError, Problem

__all__ = ["MAX_DEPTH", "MAX_VALUES", "TAG", "compose", "dump_yaml", "line_of", "one_problem"]

MAX_DEPTH = 40
MAX_VALUES = 20_000
"""A run file has a few hundred values; more indicate a mistake, or aliases that expand exponentially."""

TAG = "tag:yaml.org,2002:"


def one_problem(where: str, message: str) -> ConfigError:
    """Create an error with one problem and no key."""
    return ConfigError([Problem(where, "", message)])


def line_of(node: yaml.Node) -> int:
    """Return the first line of a node, counted from 1."""
    return int(node.start_mark.line) + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's loader with the scalars of YAML 1.2, and limits on nesting and on the number of values."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.nodes += not (isinstance(parent, yaml.MappingNode) and index is None)  # not a key
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
    """PyYAML's dumper, with quotes around strings that YAML 1.1 or 1.2 would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Line breaks other than \n must be escaped, and some characters are rejected without quotes.
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
    """Serialize plain data as YAML that `load_yaml` reads back unchanged."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _place(text: str, position: int) -> tuple[int, int]:
    """Return line and column of a position, both from 1."""
    lines = re.split("\r\n?|\n", text[:position])
    return len(lines), len(lines[-1]) + 1


def compose(text: str, source: str) -> yaml.Node | None:
    """Parse a text and return its root node; None if it is empty. Raises ConfigError with the line if it is not valid
    YAML."""
    separator = re.search("[\x85\u2028\u2029]", text)
    if separator is not None:  # a line break in YAML 1.1, but not in YAML 1.2 or in editors
        number, at = _place(text, separator.start())
        code = f"{ord(separator[0]):04X}"
        message = f"not YAML: the separator U+{code} is not allowed (column {at}); delete it, or write \\u{code} in"
        raise one_problem(f"{source}:{number}", f"{message} double quotes")
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
        raise one_problem(f"{source}:{number}", message) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        column = f" (column {mark.column + 1})" if mark else ""
        context = f" {error.context}" if error.context and error.context != error.problem else ""
        raise one_problem(place, f"not YAML: {error.problem}{context}{column}{_hint(error, text)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # such as the invalid escape \UFFFFFFFF
        raise one_problem(source, f"not YAML: {error}") from None


def _hint(error: yaml.MarkedYAMLError, text: str) -> str:
    if "\\t" in str(error.problem):
        mark = error.problem_mark
        before = re.split("\r\n?|\n", text)[mark.line][: mark.column] if mark else ""
        return "; use a space, not a tab" if before.strip() else "; indent with spaces, not tabs"
    if odd := in_file(text):
        return odd
    if "cannot start any token" in str(error.problem) or "scanning an alias" in str(error.context):
        return "; quote a string that begins like this"
    if "mapping values are not allowed" in str(error.problem):
        return "; quote a string that contains `: `"
    return ""
