"""Addresses: where a file of the repository is on the site, and links between files as links between pages."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

__all__ = ["ROOT", "address", "rewritten", "shown_file", "slug"]

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".yaml": "yaml", ".yml": "yaml", ".py": "python", ".json": "json", ".sh": "bash", ".sbatch": "bash"}


def address(path: str) -> str:
    """Return the page or file of the site that shows a file of the repository, given by its path from the root.

    A directory is shown by its README.md. Pages of docs/ stay where they are, READMEs of plugins are in distributions/;
    any other text is a page in files/, so that links to run files and code work without a server that hosts them.
    """
    if (ROOT / path).is_dir():
        path = posixpath.join(path, "README.md")
    if path in TOP:
        return TOP[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if found := re.fullmatch(r"plugins/([\w-]+)/README\.md", path):
        return f"distributions/{found[1]}.md"
    return f"files/{path}.md"


def rewritten(markdown: str, source: str, linked: set[str] | None = None) -> str:
    """Return a page with links between files as links between pages of the site.

    source: path of the page in the repository; linked: gets the path of each file that is linked and has no page of its
    own. Links in code are left alone, as are those to files that do not exist: mkdocs reports them.
    """
    here = posixpath.dirname(address(source))

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path.startswith("..") or not (ROOT / path).exists():
            return match[0]
        place = address(path)
        if linked is not None and place.startswith("files/"):
            linked.add(path)
        return match[1] + posixpath.relpath(place, here or ".") + match[3]

    parts = FENCE.split(markdown)
    return "".join(part if FENCE.fullmatch(part) else LINK.sub(link, part) for part in parts)


def shown_file(path: str) -> str:
    """Return the page that shows a file as it is."""
    text = (ROOT / path).read_text(encoding="utf-8")
    language = LANGUAGES.get(os.path.splitext(path)[1], "text")
    return f"# {posixpath.basename(path)}\n\n`{path}`\n\n````{language}\n{text.rstrip()}\n````\n"


def slug(heading: str, separator: str = "-") -> str:
    """Return the anchor of a heading as GitHub makes it, so that links work in both places."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", separator)
