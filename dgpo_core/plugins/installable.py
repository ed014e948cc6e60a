"""What the project's own plugins bring, installed or not: an unknown name of theirs says what to install.

`dgpo schema` writes the data from what the plugins declare, in a checkout of the project.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["FILE", "NO_COMPONENTS", "how_to_install", "installable"]

FILE = Path(__file__).with_name("installable.json")
NO_COMPONENTS = frozenset({"command", "place", "kind", "hook"})
"""What is brought beside kinds of components."""


@functools.cache
def installable() -> Mapping[str, Mapping[str, str]]:
    """Kind of component, "command", "place", "kind" or "hook" (of a kind) to name to distribution."""
    found: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def how_to_install(kind: str, name: str) -> str | None:
    """Where a name comes from, in words; None for one that nobody of the project brings."""
    distribution = installable().get(kind, {}).get(name)
    return distribution and f"it comes with {distribution}: pip install {distribution}"
