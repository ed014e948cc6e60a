"""Export a run's weights in the formats of other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.storage.description import CONFIG
from dgpo_core.system.files import new_directory
from dgpo_core.system.spelling import option
from dgpo_schemas.problems import nearest

if TYPE_CHECKING:
    from dgpo_core.api.target import Target
    from dgpo_core.contracts import Backbone

__all__ = ["check_export", "export"]

MERGED: Mapping[str, Literal["float32"] | None] = {"merged": None, "merged-float32": "float32"}
"""Formats of the whole network with its adapter merged, to the dtype of `Backbone.save_merged`."""


def check_export(run: Path, model: str, format: str | None) -> None:
    """Raise UserError for a run, model or format that cannot be exported, as far as known without loading the model."""
    if model == "base":
        raise UserError(
            f"{option('model', model)}: the base model is the checkpoint that the run started from; nothing to export"
        )
    if run.is_file():
        raise UserError(f"{run}: is a run file, which has only its base model; name a run directory")
    if not run.is_dir():
        raise UserError(f"{run}: no such run directory")
    if format is not None and (run / CONFIG).is_file():
        _check_meta_model(run, format)


def export(target: Target, output: Path, format: str | None = None) -> None:
    """Write a target's weights, and dgpo.json with their base model and origin; replaces the contents of `output`.

    format: export format of the adapter; None is its default. Raises UserError for an unsupported format.
    """
    engine, section = target.engine, target.engine.config.backbone
    if format is not None:
        _check_format(target.path, format, engine.backbone)
    origin = {
        "base": section.checkpoint,
        "revision": section.revision,
        "model": target.model,
        "base_files": target.base_files(),
        "iteration": target.iteration,
    }
    with new_directory(output) as aside:
        with engine.policy.activate(target.model):
            if engine.backbone.adapter is None:
                engine.backbone.save_weights(aside)
            elif format is not None and format in MERGED:
                engine.backbone.save_merged(aside, MERGED[format])
            else:
                engine.backbone.adapter.save(aside, format or engine.backbone.adapter.formats[0])
        (aside / "dgpo.json").write_text(json.dumps(origin, indent=1) + "\n")


def _check_meta_model(run: Path, format: str) -> None:
    """Raise UserError for an unsupported format, if the backbone's meta model shows its formats."""
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    section = load_run_config(run / CONFIG, registry=registry).backbone
    if section.train == "full":
        _check_format(run, format, None)
    component = registry.find("backbone", section.use)
    options = registry.options_model(component).model_validate(section.options)
    try:
        backbone = registry.implementation(component).meta_model(section, options)
    except Exception:  # no meta model, or a moved checkpoint (`--set`); checked again after loading
        return
    _check_format(run, format, backbone)


def _check_format(run: Path, format: str, backbone: Backbone | None) -> None:
    """Raise UserError for a format that the backbone does not support, or if it has no adapter."""
    from dgpo_core.contracts import Backbone

    where = option("format", format)
    if backbone is None or backbone.adapter is None:
        raise UserError(
            f"{where}: is an adapter format, and {run} has no adapter (backbone.train: full); "
            f"leave {option('format')} out"
        )
    merges = type(backbone).save_merged is not Backbone.save_merged
    formats = (*backbone.adapter.formats, *(MERGED if merges else ()))
    if format not in formats:
        raise UserError(f"{where}: choose one of {', '.join(formats)}{nearest(format, formats)}")
