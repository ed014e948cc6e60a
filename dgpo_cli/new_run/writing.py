"""A run file as text, with a comment for every key: the first sentence of its description in the schemas."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dgpo_cli.new_run.building import Answers, Built
from dgpo_core.config.components import PLACES, blocks_at
from dgpo_core.config.keys import Keys, keys_in
from dgpo_core.config.presets import presets_of
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.problems import KeyPath, dotted
from dgpo_schemas.text import clean, shell_word
from dgpo_schemas.yaml_text import dump_yaml

__all__ = ["commented", "head"]

WIDTH = 80
PLAIN = ("options",)
"""Keys whose names say everything."""


def head(file: Path, answers: Answers, built: Built, registry: Registry) -> str:
    """Return the comment at the top of the file: where its settings come from."""
    words = [("--model", answers.model), ("--reward", answers.reward), ("--weights", answers.weights),
             ("--prompts", answers.prompts), ("--heldout", answers.heldout), ("--card", answers.card),
             ("--train", answers.train), ("--name", answers.name)]  # fmt: skip
    given = [f"{option} {shell_word(value)}" for option, value in words if value is not None]
    given += [f"--set {shell_word(setting)}" for setting in answers.settings]
    paragraphs = [f"Written by `dgpo init {shell_word(str(file))} {' '.join(given)}`."]
    if built.base is not None:
        paragraphs.append(
            f"The other settings are those of {built.base.place}, whose comments give the source of each number."
        )
    if answers.train == "full":
        paragraphs.append("The learning rate is below the example's, which is for an adapter; it has not been tried.")
    if built.preset is not None:
        paragraphs.append(f"Preset {built.preset}: {_comment_of(built, registry)}")
    paragraphs.append(
        "Keys that are left out have their defaults. To explain a key:\n"
        f"    dgpo validate {shell_word(str(file))} --explain rollout.group_size"
    )
    return "\n\n".join(paragraphs)


def _comment_of(built: Built, registry: Registry) -> str:
    """Return the comment at the top of the preset's file, which says what the preset changes."""
    assert built.preset is not None
    path = presets_of(built.document.data["backbone"]["use"], registry)[built.preset]
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def commented(comment: str, data: Mapping[str, Any], registry: Registry) -> str:
    """Return a run file with this content. comment: that at the top; its paragraphs stay apart."""
    writer = _Writer(keys_in("run", data, registry), _summaries(data, registry))
    lines = [*_comment(comment, 0)]
    for key, value in data.items():
        lines += ["", *writer.entry((key,), value, 0)]
    return "\n".join(lines) + "\n"


def _summaries(data: Mapping[str, Any], registry: Registry) -> dict[str, str]:
    """Return the summary of each component that the file selects, by the key of its name."""
    found = {}
    for place, kind in PLACES.items():
        for where, block in blocks_at(data, place):
            name = block.get("use") if isinstance(block, dict) else block
            registered = registry.components(kind).get(str(name))
            if registered is not None:
                found[dotted((*where, "use") if isinstance(block, dict) else where)] = registered.component.summary
    return found


class _Writer:
    def __init__(self, keys: Keys, summaries: Mapping[str, str]) -> None:
        self.keys = keys
        self.summaries = summaries

    def entry(self, path: KeyPath, value: Any, indent: int) -> Iterator[str]:
        """Yield the lines of a key: its comment, and its value."""
        key = str(path[-1])
        yield from _comment(self._meaning(path), indent)
        if isinstance(value, Mapping) and value:
            yield f"{' ' * indent}{_scalar(key)}:"
            for name, inner in value.items():
                yield from self.entry((*path, name), inner, indent + 2)
        elif isinstance(value, list) and any(isinstance(item, Mapping | str) for item in value):
            yield f"{' ' * indent}{_scalar(key)}:"
            for i, item in enumerate(value):
                yield from self._item((*path, i), item, indent + 2)
        else:
            shown = _json(value) if isinstance(value, list | Mapping) else _scalar(value)
            yield f"{' ' * indent}{_scalar(key)}: {shown}"

    def _item(self, path: KeyPath, value: Any, indent: int) -> Iterator[str]:
        """Yield the lines of a list item; the dash stands before the first key, below its comment."""
        if not isinstance(value, Mapping) or not value:
            yield f"{' ' * indent}- {_scalar(value) if not isinstance(value, list | Mapping) else _json(value)}"
            return
        begun = False
        for name, inner in value.items():
            for line in self.entry((*path, name), inner, indent + 2):
                if not begun and line.lstrip().startswith("#"):
                    yield line[2:]
                else:
                    yield line if begun else f"{' ' * indent}- {line.lstrip()}"
                    begun = True

    def _meaning(self, path: KeyPath) -> str:
        """Return the first sentence about a key, of the name of a component its summary."""
        name = dotted(path)
        if name in self.summaries:
            return self.summaries[name].rstrip(".")
        known = self.keys.find(name)
        return _sentence(known[0].key.description) if known and path[-1] not in PLAIN else ""


def _sentence(text: str) -> str:
    """Return the first sentence of a text without its period, or all before a semicolon."""
    return re.split(r"[.;] |[.;]$", " ".join(text.split()), maxsplit=1)[0]


def _comment(text: str, indent: int) -> Iterator[str]:
    start = f"{' ' * indent}# "
    for i, paragraph in enumerate(text.split("\n\n") if text else []):
        if i:
            yield start.rstrip()
        for line in paragraph.split("\n"):
            yield from textwrap.wrap(
                clean(line), WIDTH, initial_indent=start, subsequent_indent=start, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip


def _scalar(value: Any) -> str:
    """Format a value in one line, with quotes if necessary."""
    if isinstance(value, str) and (len(value) > 60 or not value.isprintable()):
        return _json(value)
    return dump_yaml({"key": value}).partition(": ")[2].rstrip("\n")


def _json(value: Any) -> str:
    """Format a value as JSON, which is YAML too; characters that YAML or editors do not show are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value).replace("\x7f", "\\u007f")
