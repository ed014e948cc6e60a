"""Tables of layers in CONTRIBUTING.md, generated from the import checker's configuration by `python -m tests.layers`.

The packages of a layer come from `[tool.importlinter]` in pyproject.toml, their content from the first sentence of each
docstring. `tests/test_layers.py` checks that the page is up to date.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PAGE", "checked", "layers", "written"]

root = Path(__file__).parents[1]

PAGE = root / "CONTRIBUTING.md"
BEGIN, END = "<!-- layers: made by `python -m tests.layers` -->\n", "<!-- layers end -->\n"


def checked() -> Sequence[Mapping[str, Any]]:
    """The contracts of import-linter."""
    found: list[Mapping[str, Any]] = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return found


def layers() -> str:
    """Markdown: one table for each contract of layers, and a line for each other contract."""
    return "\n".join([*_tables(), *_others()]) + "\n"


def written(page: str) -> str:
    """The page with up-to-date tables between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{PAGE.name} has no markers of layers"
    return before + BEGIN + "\n" + layers() + "\n" + END + after


def _tables() -> Iterator[str]:
    for contract in checked():
        if contract["type"] != "layers":
            continue
        (container,) = contract.get("containers", [""])
        yield from (f"**{contract['name']}**", "", "| layer | module | content |", "|---|---|---|")
        for number, layer in reversed(list(enumerate(reversed(contract["layers"])))):
            for name in (name.strip(" ()") for name in re.split(r"[|:]", layer)):
                yield f"| {number} | `{name}` | {_what(f'{container}.{name}' if container else name)} |"
        yield ""


def _others() -> Iterator[str]:
    for contract in checked():
        if contract["type"] == "forbidden":
            whose, what = (", ".join(f"`{m}`" for m in contract[f"{key}_modules"]) for key in ("source", "forbidden"))
            yield f"- {contract['name']}: {whose} never import {what}."


def _what(module: str) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    for parent in (root, root / "schemas", *sorted(root.glob("plugins/*/src"))):
        place = parent.joinpath(*module.split("."))
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
                first = re.split(r"\.\s|\.$|\n\n", text, maxsplit=1)[0]
                return " ".join(first.split()).replace("|", "\\|")
    raise FileNotFoundError(f"{module}, which pyproject.toml names as a layer")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
