"""Called by mkdocs (`hooks` in mkdocs.yml): adds the pages outside docs/, and rewrites the links of those in it."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File

from dgpo_core.plugins.registry import get_registry
from documentation.links import ROOT, rewritten, slug
from documentation.pages import copied, expanded, generated, lists_apart, sources

__all__ = ["on_config", "on_files", "on_page_content", "on_page_markdown"]


def on_config(config: Any) -> Any:
    """Make anchors of headings as GitHub does, and list the pages of folders in the navigation."""
    config.nav = expanded(config.nav)
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add generated pages, and pages and files of the repository outside docs/."""
    for place, text in (copied() | generated(get_registry())).items():
        files.append(File.generated(config, place, content=text))
    files.append(File.generated(config, "assets/site.css", abs_src_path=str(ROOT / "documentation" / "site.css")))
    return files


def on_page_markdown(markdown: str, page: Any, **arguments: Any) -> str:
    """Rewrite the links of a page of docs/ to places outside it."""
    path = f"docs/{page.file.src_uri}"
    return lists_apart(rewritten(markdown, path)) if path in sources() else markdown


def on_page_content(html: str, **arguments: Any) -> str:
    """Show `|` in the code of a table's cell, which GitHub wants escaped and Python-Markdown then shows as `\\|`."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)
