"""Presets: partial run files applied to a run file, such as settings that fit a model into GPU memory.

A backbone's package may contain presets as `presets/NAME.yaml`, beside its module or in an outer package; others are
given by the path of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

__all__ = ["Preset", "preset_files", "presets_of", "with_presets"]

Preset = str | Sequence[str] | None
"""The name or the file of a preset, or several of them, of which the later ones override the earlier ones."""


def presets_of(backbone: str, registry: Registry) -> dict[str, Path]:
    """Return the presets in the innermost package of the backbone that has some, sorted by length and then by name."""
    package = registry.find("backbone", backbone).component.implementation.split(":")[0]
    found: list[Path] = []
    while "." in package and not found:
        package = package.rpartition(".")[0]
        directory = Path(str(files(package))) / "presets"
        found = sorted(directory.glob("*.yaml"), key=lambda path: (len(path.stem), path.stem))
    return {path.stem: path for path in found}


def preset_files(document: Document, preset: Preset, registry: Registry) -> list[tuple[str, Path]]:
    """Return the name and file of each preset for a run file, in their order. Raises UserError for an unknown name."""
    names = [preset] if isinstance(preset, str) else preset or ()
    return [(name, _file(document, name, registry)) for name in names]


def with_presets(document: Document, preset: Preset, registry: Registry) -> Document:
    """Return the run file with the presets' values applied; mistakes in them are reported at their place in the preset.

    Raises UserError for an unknown name, and ConfigError for mistakes in a preset.
    """
    for _, file in preset_files(document, preset, registry):
        layer = load_yaml(file)
        refuse(layer, "run")
        document = apply_settings(document, list(_leaves(layer, layer.data, ())))
    return document


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
        names, near = ", ".join(known) or "none", nearest(preset.lower(), known)
        raise UserError(
            f"{option('preset')}: {preset!r} is not a preset of backbone {backbone}{near} (presets: {names}), nor a "
            ".yaml file"
        )
    return known[preset]


def _leaves(layer: Document, value: dict[str, Any], path: KeyPath) -> Iterator[tuple[str, Any, Position]]:
    for key, inner in value.items():
        inner_path = (*path, key)
        if isinstance(inner, dict) and inner:
            yield from _leaves(layer, inner, inner_path)
        else:
            yield dotted(inner_path), inner, layer.position(inner_path)
