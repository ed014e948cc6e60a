"""Presets: pieces of run files that are laid over one, such as the settings that fit a model to a card.

The package of a backbone's module may bring some as `presets/NAME.yaml`; a file of one's own is given by its path.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgpo_core.config.migration.refusing import refuse
from dgpo_core.config.settings import apply_settings
from dgpo_core.errors import UserError
from dgpo_core.system.spelling import option
from dgpo_schemas.loading import Document, Position, load_yaml
from dgpo_schemas.places import expand_home
from dgpo_schemas.problems import KeyPath, dotted, nearest

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry

__all__ = ["presets_of", "with_preset"]


def presets_of(backbone: str, registry: Registry) -> dict[str, Path]:
    """Name to file of what the backbone's package brings, in the order of names' numbers."""
    module = registry.find("backbone", backbone).component.implementation.split(":")[0]
    directory = Path(str(files(module.rpartition(".")[0] or module))) / "presets"
    found = sorted(directory.glob("*.yaml"), key=lambda path: (len(path.stem), path.stem))
    return {path.stem: path for path in found}


def with_preset(document: Document, preset: str, registry: Registry) -> Document:
    """The run file with the preset's values in place of its own; mistakes are shown where the preset has them.

    Raises UserError for a name that is not known, and ConfigError for what the file does wrong.
    """
    layer = load_yaml(_file(document, preset, registry))
    refuse(layer, "run")
    return apply_settings(document, list(_leaves(layer, layer.data, ())))


def _file(document: Document, preset: str, registry: Registry) -> Path:
    if Path(preset).suffix in (".yaml", ".yml"):
        try:
            return Path(expand_home(preset))
        except ValueError as error:
            raise UserError(f"{option('preset')}: {error}") from None
    section = document.data.get("backbone")
    backbone = section.get("use") if isinstance(section, dict) else section
    known = presets_of(backbone, registry) if isinstance(backbone, str) else {}
    if preset not in known:
        there = ", ".join(known) or "none"
        raise UserError(
            f"{option('preset')}: {preset!r} is no preset of backbone {backbone}{nearest(preset, known)} (it brings: "
            f"{there}), and no file that ends in .yaml"
        )
    return known[preset]


def _leaves(layer: Document, value: dict[str, Any], path: KeyPath) -> Iterator[tuple[str, Any, Position]]:
    for key, inner in value.items():
        here = (*path, key)
        if isinstance(inner, dict) and inner:
            yield from _leaves(layer, inner, here)
        else:
            yield dotted(here), inner, layer.position(here)
