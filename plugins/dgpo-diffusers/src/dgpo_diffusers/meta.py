"""Models without weights, built from configuration files on torch's meta device, for `dgpo plan`."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgpo_core.errors import UserError
from dgpo_core.weights import read_json, resolve_checkpoint, where_instead
from dgpo_diffusers.checkpoint_check import CHECKPOINT, INDEX, Index, read_index
from dgpo_diffusers.libraries import library_class, quiet
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_diffusers.family import Family

__all__ = ["load_meta"]

Configurations = dict[str, dict[str, Any]]


def load_meta(family: Family) -> Any:
    """Build the pipeline of `loading.load` from the checkpoint's configurations only, on the backbone's device.

    It has no tokenizers; on a device other than meta, its weights are random. Raises UserError if no configurations are
    available.
    """
    index, configs = _described(family)
    family.index = index
    try:
        return _made_of(family, index, configs)
    except Exception as error:  # the libraries may raise anything for an unexpected value
        reason = error_text(error, 300).replace("\n", " ")
        raise UserError(
            f"{CHECKPOINT}: cannot build a model from the config.json files of {family.section.checkpoint}: {reason}"
        ) from error


def _made_of(family: Family, index: Index, configs: Configurations) -> Any:
    section, layout = family.section, family.layout
    names = [name for name in family.components_to_load(index) if name in configs]
    exact = {*layout.exact, *([family.trained(names)] if section.train == "full" else [])}
    components: dict[str, Any] = dict.fromkeys((*layout.models, *layout.vocabularies, *layout.unused))
    with family.device, quiet():
        for name in names:
            kind = layout.kind_of(name)
            config = getattr(kind, "config_class", None)  # of transformers
            model = kind.from_config(configs[name]) if config is None else kind(config(**configs[name]))
            components[name] = model.to(torch.float32 if name in exact else getattr(torch, section.dtype))
    with quiet():
        found = configs.get("scheduler", {})
        kind = library_class(found.get("_class_name", "FlowMatchEulerDiscreteScheduler"))
        placeholders = family.placeholders()
        components |= {"scheduler": kind.from_config(found), **placeholders, **family.settings(index)}
        pipeline = layout.kind(**components)
    for name in placeholders:
        setattr(pipeline, name, None)
    return pipeline


def _described(family: Family) -> tuple[Index, Configurations]:
    """Return the index and the configuration of each component, of a directory or of a known published model."""
    checkpoint, layout = family.section.checkpoint, family.layout
    directory = Path(resolve_checkpoint(checkpoint))
    if directory.is_dir():
        found = {p.parent.name: read_json(p, CHECKPOINT) for p in sorted(directory.glob("*/config.json"))}
        path = directory / INDEX
        index = read_index(path, str(directory), layout) if path.is_file() else _index(found)
        scheduler = directory / "scheduler" / "scheduler_config.json"
        if scheduler.is_file():
            found["scheduler"] = read_json(scheduler, CHECKPOINT)
        missing = [n for n in family.components_to_load(index) if n not in found and n not in layout.optional]
        if missing:
            instead = where_instead(directory, INDEX)
            raise UserError(f"{CHECKPOINT}: {directory}/{missing[0]} has no config.json{instead}")
        return index, found
    known = _published(type(family), layout.backbone)
    published = [name for name in known if "/" in name]
    if checkpoint not in published:
        known_are = f"; known models: {', '.join(published)}" if published else "; use a local directory"
        raise UserError(
            f"{CHECKPOINT}: {checkpoint} is neither a local directory nor a model with known configurations{known_are}"
        )
    configs = {name: config for name, config in known.items() if "/" not in name} | known[checkpoint]
    return _index(configs), configs


def _published(kind: type, name: str) -> Configurations:
    """Read `NAME.json` in the family's package: configurations that all its models share, and those of each model."""
    home = next(k for k in kind.__mro__ if "layout" in vars(k)).__module__.rpartition(".")[0]
    file = files(home).joinpath(f"{name}.json")
    known: Configurations = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return known


def _index(configs: Configurations) -> Index:
    """Create an index of these components; the key "index" of `configs` holds its settings."""
    return Index(Path(INDEX), {name: ["library", "class"] for name in configs} | configs.pop("index", {}))
