"""Models without their weights: what their configuration files say, on torch's meta device, for `dgpo plan`."""

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
    """The pipeline that `loading.load` gives, on the backbone's device, of the checkpoint's configurations alone: no
    tokenizers, and on another device than meta random weights. Raises UserError where there are none to be had."""
    index, configs = _described(family)
    try:
        return _made_of(family, index, configs)
    except Exception as error:  # the libraries raise what they like for a value that they do not expect
        said = error_text(error, 300).replace("\n", " ")
        raise UserError(
            f"{CHECKPOINT}: no model can be made of the config.json files of {family.section.checkpoint}: {said}"
        ) from error


def _made_of(family: Family, index: Index, configs: Configurations) -> Any:
    section, layout = family.section, family.layout
    names = [name for name in family.components_to_load(index) if name in configs]
    exact = {"vae", family.trained(names)} if section.train == "full" else {"vae"}
    components: dict[str, Any] = dict.fromkeys((*layout.models, *layout.vocabularies))
    with family.device, quiet():
        for name in names:
            kind = layout.kind_of(name)
            config = getattr(kind, "config_class", None)  # of transformers
            model = kind.from_config(configs[name]) if config is None else kind(config(**configs[name]))
            components[name] = model.to(torch.float32 if name in exact else getattr(torch, section.dtype))
    with quiet():
        found = configs.get("scheduler", {})
        kind = library_class(found.get("_class_name", "FlowMatchEulerDiscreteScheduler"))
        return layout.kind(**components, scheduler=kind.from_config(found), **family.settings(index))


def _described(family: Family) -> tuple[Index, Configurations]:
    """Component to configuration: those of a directory, or of a published model that the family knows by name."""
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
        known_are = f"; known are {', '.join(published)}" if published else ": give a directory"
        raise UserError(
            f"{CHECKPOINT}: {checkpoint} is no directory here, and what it looks like is not known{known_are}"
        )
    configs = {name: config for name, config in known.items() if "/" not in name} | known[checkpoint]
    return _index(configs), configs


def _published(kind: type, name: str) -> Configurations:
    """`NAME.json` beside the family's file: configurations that its models have in common, and each one's own."""
    home = next(k for k in kind.__mro__ if "layout" in vars(k)).__module__.rpartition(".")[0]
    file = files(home).joinpath(f"{name}.json")
    known: Configurations = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return known


def _index(configs: Configurations) -> Index:
    """One that names these components; "index": the settings that it has."""
    return Index(Path(INDEX), {name: ["library", "class"] for name in configs} | configs.pop("index", {}))
