"""All pages of the site that are not files of docs/: generated ones, and files of the repository that pages link to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dgpo_core.plugins.registry import Registry
from documentation.components import component_pages
from documentation.links import ROOT, address, rewritten, shown_file
from documentation.recipes import recipes_page
from documentation.reference import api_pages, commands_page, run_file_page

__all__ = ["copied", "expanded", "generated", "lists_apart", "sources"]


def sources() -> dict[str, str]:
    """Return {path in the repository: address} of the pages that are written by hand."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]
    paths = [path.relative_to(ROOT).as_posix() for path in sorted(files)]
    return {path: address(path) for path in paths}


def generated(registry: Registry) -> dict[str, str]:
    """Return {address: Markdown} of recipes and the reference: run file, command line, components, Python API."""
    return {
        "recipes.md": recipes_page(registry),
        "reference/run-file.md": run_file_page(),
        "reference/command-line.md": commands_page(registry),
        **component_pages(registry),
        **api_pages(),
    }


def copied() -> dict[str, str]:
    """Return {address: Markdown} of the pages outside docs/, and of the files that any page links to."""
    linked: set[str] = set()
    pages: dict[str, str] = {}
    for path, place in sources().items():
        text = (ROOT / path).read_text(encoding="utf-8")
        shown = lists_apart(rewritten(text, path, linked))
        if not path.startswith("docs/"):
            pages[place] = shown
    return pages | {address(path): shown_file(path) for path in sorted(linked) if _is_text(ROOT / path)}


def expanded(navigation: list[Any]) -> list[Any]:
    """Return the navigation of mkdocs.yml with each folder, an address that ends with `/`, as the list of its pages."""
    return [_expanded(entry) for entry in navigation]


def _expanded(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {title: _expanded(inner) for title, inner in entry.items()}
    if isinstance(entry, list):
        return expanded(entry)
    if not entry.endswith("/"):
        return entry
    pages = [place for place in sources().values() if place.startswith(entry)]
    return sorted(pages, key=lambda place: (not place.endswith("README.md"), place))


def lists_apart(markdown: str) -> str:
    """Return Markdown with an empty line before each list, which GitHub does not need and Python-Markdown does."""
    lines: list[str] = []
    fenced = False
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        starts = re.match(r"([-*]|\d+\.) ", line) is not None and not fenced
        if starts and before.strip() and not re.match(r" |[-*] |\d+\. ", before):
            lines.append("")
        fenced ^= line.lstrip().startswith("```")
        lines.append(line)
    return "\n".join(lines)


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix not in (".png", ".ipynb")
