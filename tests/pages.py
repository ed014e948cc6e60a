"""What stands in the fenced blocks of a page: code, commands to type, and what they print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

__all__ = ["ROOT", "blocks", "commands", "section", "typed"]

ROOT = Path(__file__).parent.parent


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language; "" for those of none."""
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for named, block in found if named == language]


def typed(text: str) -> list[tuple[str, str]]:
    """(command, what it prints) of every console block."""
    found = []
    for block in blocks(text, "console"):
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            found.append((line, output))
    return found


def section(page: str, heading: str) -> str:
    """The text below a heading of second order, up to the next one. page: its path in the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return str(found)


def commands(text: str) -> list[list[str]]:
    """Commands of the blocks without a language, in words as a shell would split them, without comments."""
    lines = "\n".join(blocks(text, "")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
