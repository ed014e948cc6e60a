"""What the project's own plugins bring, installed or not: an unknown name of theirs says what to install.

`dgpo schema` writes the data from what the plugins declare, in a checkout of the project.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["FILE", "NO_PARTS", "how_to_install", "installable", "written"]

FILE = Path(__file__).with_name("installable.json")
NO_PARTS = frozenset({"command", "place", "kind", "hook"})
"""What is brought beside kinds of parts."""


@functools.cache
def installable() -> Mapping[str, Mapping[str, str]]:
    """Kind of part, "command", "place", "kind" or "hook" (of a kind) to name to distribution."""
    found: dict[str, dict[str, str]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def how_to_install(kind: str, name: str) -> str | None:
    """Where a name comes from, in words; None for one that nobody of the project brings."""
    distribution = installable().get(kind, {}).get(name)
    return distribution and f"it comes with {distribution}: pip install {distribution}"


def written(registry: Registry, distributions: Collection[str]) -> str:
    """The data as what is installed of these distributions declares it; of those that are not, it stays as it is."""
    sound = set(registry.distributions()) - {broken.distribution for broken in registry.broken}
    kept = {
        (kind, name): owner
        for kind, names in installable().items()
        for name, owner in names.items()
        if owner not in sound or (kind, name) in registry.conflicts()
    }
    found: dict[str, dict[str, str]] = {}
    for (kind, name), owner in sorted((kept | dict(_declared(registry))).items()):
        if owner in distributions:
            found.setdefault(kind, {})[name] = owner
    return json.dumps(found, indent=2) + "\n"


def _declared(registry: Registry) -> Iterator[tuple[tuple[str, str], str]]:
    for kind in registry.kinds:
        yield from (((kind, name), part.distribution) for name, part in registry.parts(kind).items())
    yield from ((("command", name), one.distribution) for name, one in registry.commands().items())
    yield from ((("place", key), place.distribution) for key, place in registry.places.items())
    for name, distribution in registry.brought.items():
        yield ("kind", name), distribution
        yield ("hook", registry.kinds[name].hook), distribution
