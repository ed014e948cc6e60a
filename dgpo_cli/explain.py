"""`dgpo validate --explain`: what keys mean, and where a file sets them."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgpo_core.config.keys import Keys, KnownKey
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.loading import Document

__all__ = ["explained"]

WIDTH = 80
VALUE = 18
"""Most columns of a value in the table of a section."""
RESUMED = {
    "fixed": "fixed: a resumed run must have the same value",
    "from there on": "may change; results differ from the resumed iteration on",
    "any time": "may change at any time",
}


def explained(
    names: Sequence[str], file: Path | None, overrides: Sequence[str], preset: Sequence[str], registry: Registry
) -> Iterator[str]:
    """Yield the lines that explain keys; of a section also a line for each key in it.

    file: a run file, reward file or ablation file, of which the values are shown; it may contain mistakes. Raises
    UserError for unknown keys, with the nearest ones.
    """
    from dgpo_core.errors import UserError

    tables = list(_tables(names, file, overrides, preset, registry))
    problems = [message for name in names if (message := _unknown(name, tables))]
    if problems:
        raise UserError("\n".join(problems))
    first = True
    for name in names:
        for one in tables:
            for known in one.keys.find(name):
                yield from () if first else ("",)
                first = False
                yield from one.entry(name, known)


def _tables(
    names: Sequence[str], file: Path | None, overrides: Sequence[str], preset: Sequence[str], registry: Registry
) -> Iterator[_Table]:
    """Yield the keys of the file; without one, those of each kind of file, with options of all components if needed."""
    from dgpo_core.config.keys import FILES, keys_in, keys_of_any, keys_of_file
    from dgpo_core.errors import UserError

    if file is None:
        if overrides or preset:
            raise UserError(f"{'--set' if overrides else '--preset'}: requires a run file")
        options = any(".options." in name or name.endswith(".options") for name in names)
        for kind in FILES:
            yield _Table(kind, keys_of_any(kind, registry) if options else keys_of_file(kind), None, {})
        return
    kind, document, presets = _read(file, overrides, preset, registry)
    data = _with_defaults(kind, document)
    yield _Table(kind, keys_in(kind, data, registry), document, data, f"{file}:", presets)


def _read(
    file: Path, overrides: Sequence[str], preset: Sequence[str], registry: Registry
) -> tuple[str, Document, list[tuple[str, Path]]]:
    """Return the kind of the file, the file with all settings applied, and the files of the presets."""
    from dgpo_core.config.overrides import apply_overrides
    from dgpo_core.config.presets import preset_files, with_presets
    from dgpo_core.config.reading import kind_of, read
    from dgpo_schemas.loading import load_yaml

    kind = "run" if file.is_dir() else kind_of(load_yaml(file)) or "run"
    document = read(file, kind, overrides)
    presets = preset_files(document, preset, registry)
    return kind, apply_overrides(with_presets(document, preset, registry), overrides), presets


def _with_defaults(kind: str, document: Document) -> dict[str, Any]:
    """Return the content with defaults, which may select components; as it is if it contains mistakes."""
    from pydantic import ValidationError

    from dgpo_core.config.keys import FILES

    try:
        return FILES[kind].model.model_validate(document.data).model_dump()
    except ValidationError:
        return document.data


def _unknown(name: str, tables: Sequence[_Table]) -> str:
    """Return a message if no table has a key; "" if one has."""
    from dgpo_schemas.text import clean

    if any(one.keys.find(name) for one in tables):
        return ""
    shown = f"--explain {clean(name, 80)}"
    near = list(dict.fromkeys(key for one in tables for key in one.keys.nearest(name)))[:3]
    if near:
        return f"{shown}: unknown key; did you mean {' or '.join(near)}?"
    top = ", ".join(tables[0].keys.below(""))
    return f"{shown}: unknown key; allowed: {top}, and the keys in them"


@dataclass(frozen=True, slots=True)
class _Table:
    """The keys of a kind of file, and the file if there is one. data: its content with defaults; start: how positions
    in the file begin."""

    kind: str
    keys: Keys
    document: Document | None
    data: Mapping[str, Any]
    start: str = ""
    presets: Sequence[tuple[str, Path]] = ()

    def entry(self, name: str, known: KnownKey) -> Iterator[str]:
        """Yield the lines about a key."""
        from dgpo_core.config.keys import FILES

        owners = f"option of {', '.join(known.owners)}" if known.owners else ""
        noun = owners or ("" if self.document else f"key of {FILES[self.kind].noun}")
        yield from _wrapped(f"{name} ({noun})" if noun else name, "", "    ")
        yield from _wrapped(_one_line(known.key.description), "  ")
        inner = self.keys.below(name) or self.keys.below(f"{name}.N")
        for title, text in self._rows(name, known, section=bool(inner)):
            yield from _wrapped(f"{title:<11}{text}", "  ", " " * 13)
        if inner:
            prefix = name if self.keys.below(name) else f"{name}.0"
            yield ""
            yield from _aligned([self._header(), *self._lines(prefix, inner)])

    def _rows(self, name: str, known: KnownKey, *, section: bool) -> Iterator[tuple[str, str]]:
        from dgpo_schemas.changes import generic

        key = known.key
        item = generic(key.name) != generic(name)  # it has the description of its list
        if not item and not (section and key.kind == "section"):
            yield "type:", key.kind
        if not item and (key.required or key.default is not None):
            yield "default:", "none, the key is required" if key.required else key.default or '""'
        if known.effect is not None and not (section and known.effect == "fixed"):  # others may be in it
            yield "on resume:", RESUMED[known.effect]
        if self.document is not None:
            value, where = self._value(name), self._where(name)
            shown = "" if isinstance(value, dict | list) and section else _inline(value) + ", "
            yield "here:", f"{shown}{self._origin(where)}" if where else self._unset(name)

    def _header(self) -> tuple[str, ...]:
        return ("key", "value", "set by", "meaning") if self.document else ("key", "default", "meaning")

    def _lines(self, prefix: str, inner: Mapping[str, list[KnownKey]]) -> Iterator[tuple[str, ...]]:
        for last, (known, *_) in inner.items():
            name = f"{prefix}.{last}"
            nested = bool(self.keys.below(name) or self.keys.below(f"{name}.N"))
            default = "required" if known.key.required else "(section)" if nested else known.key.default or ""
            if self.document is None:
                yield last, default, _one_line(known.key.description)
                continue
            where = self._where(name)
            value = _inline(self._value(name)) if where and not nested else default
            yield last, value, self._source(where), _one_line(known.key.description)

    def _where(self, name: str) -> str:
        """Return the position at which a key is set, "" if it is not."""
        from dgpo_schemas.problems import split_key

        assert self.document is not None
        path = split_key(name)
        here: Any = self.document.data
        for end, component in enumerate(path):
            if isinstance(here, str) and component in ("use", "file"):  # a short form
                return self.document.position(path[:end]).text
            known = isinstance(here, dict) and component in here
            if not known and not (isinstance(here, list) and component in range(len(here))):
                return ""
            here = here[component]
        return self.document.position(path).text

    def _unset(self, name: str) -> str:
        """Say what is in place of a key that is not set: its default, or nothing if its list item is not there."""
        from dgpo_schemas.problems import split_key

        here: Any = self.data
        for component in split_key(name):
            if isinstance(here, list) and isinstance(component, int) and component >= len(here):
                return f"not there, the list has {len(here)} item{'' if len(here) == 1 else 's'}"
            inside = isinstance(here, Mapping) and component in here
            here = here[component] if inside or (isinstance(here, list) and isinstance(component, int)) else None
        return "not set, so the default"

    def _origin(self, where: str) -> str:
        if where.startswith(self.start):
            return f"set in {where}"
        if where.startswith("--set"):
            return f"set by {where}"
        # Of a key that two presets set, the position is in the later one.
        name = next(name for name, file in self.presets if where.startswith(f"{file}:"))
        return f"set by the preset {name} ({where})"

    def _source(self, where: str) -> str:
        """Return the position of a key for a table: the line of the file, or what set the key instead."""
        if where.startswith(self.start):
            return f"line {where.removeprefix(self.start)}"
        return "--set" if where.startswith("--set") else "preset" if where else ""

    def _value(self, name: str) -> Any:
        """Return the value of a key that is set; of a short form, that of its long form."""
        from dgpo_schemas.problems import split_key

        assert self.document is not None
        here: Any = self.document.data
        for component in split_key(name):
            if isinstance(here, str):
                return here
            known = isinstance(here, dict) and component in here
            if not known and not (isinstance(here, list) and component in range(len(here))):
                return None
            here = here[component]
        return here


def _inline(value: Any) -> str:
    """Format a value in one line, as in YAML."""
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False, default=str)


def _one_line(text: str) -> str:
    """Join the lines of a description."""
    return " ".join(text.split())


def _width() -> int:
    return max(min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDTH), 40)


def _wrapped(text: str, indent: str, more: str | None = None) -> list[str]:
    from dgpo_schemas.text import clean

    return textwrap.wrap(
        clean(text), _width(), initial_indent=indent, subsequent_indent=indent if more is None else more,
        break_on_hyphens=False, break_long_words=False,
    )  # fmt: skip


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Format rows in columns, each on one line: the second and the last column are shortened."""
    from dgpo_schemas.text import clean

    cut = [[name, _shortened(value, VALUE), *rest] for name, value, *rest in ([*map(clean, row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)][:-1]
    room = max(_width() - sum(widths) - 2 * len(widths) - 2, 12)
    for *cells, last in cut:
        start = "".join(cell.ljust(width) + "  " for cell, width in zip(cells, widths, strict=True))
        yield f"  {start}{_shortened(last, room)}".rstrip()


def _shortened(text: str, width: int) -> str:
    short = textwrap.shorten(text, width, placeholder=" …", break_on_hyphens=False)
    return short if short != "…" else f"{text[: width - 1]}…"
