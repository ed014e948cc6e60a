"""Components of the project's plugins, installed or not, so that messages about unknown names say what to install.

In a checkout of the project, `dgpo schema` generates the data from the plugins' declarations.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path

__all__ = ["FILE", "NO_COMPONENTS", "how_to_install", "installable", "pip_install"]

FILE = Path(__file__).with_name("installable.json")
NO_COMPONENTS = frozenset({"command", "transport", "kind", "hook"})
"""Keys that are not kinds of components."""


@functools.cache
def installable() -> Mapping[str, Mapping[str, str]]:
    """Map a kind of component, "command", "transport", "kind" or "hook" to {name: distribution}."""
    data: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return data


def how_to_install(kind: str, name: str) -> str | None:
    """Return how to install the plugin that provides a name; None if no plugin of the project does."""
    distribution = installable().get(kind, {}).get(name)
    return distribution and f"it comes with {distribution}; in a checkout of dgpo: {pip_install(distribution)}"


def pip_install(distribution: str) -> str:
    """Return the command that installs a distribution of the project from a checkout: it is on no package index."""
    return f"pip install -e plugins/{distribution}"
