"""Tables of the keys of a model: run files, reward files, options of components."""

from __future__ import annotations

from collections.abc import Callable

from dgpo_schemas.keys import Key

__all__ = ["table"]


def table(keys: list[Key], resumed: Callable[[str], str] | None = None) -> list[str]:
    """Return the lines of a Markdown table. resumed: what a resume may do with a key, for a column of its own."""
    titles = ["key", "type", "default", *(["on resume"] if resumed else []), "meaning"]
    lines = [_row(titles), _row(["---"] * len(titles))]
    for key in keys:
        default = "required" if key.required else f"`{key.default}`" if key.default is not None else ""
        cells = [f"`{key.name}`", key.kind, default, *([resumed(key.name)] if resumed else []), key.description]
        lines.append(_row([_cell(cell) for cell in cells]))
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Escape what would end a cell or read as HTML, outside of code."""
    parts = " ".join(text.split()).split("`")
    return "`".join(
        part.replace("|", "\\|") if i % 2 else part.replace("|", "&#124;").replace("<", "&lt;")
        for i, part in enumerate(parts)
    )
