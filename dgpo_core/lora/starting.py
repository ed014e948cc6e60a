"""Check that the adapter in a file fits the layers that an adapter binds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from dgpo_core.errors import UserError
from dgpo_core.lora.files import INIT, AdapterFile, Update
from dgpo_schemas.problems import nearest
from dgpo_schemas.text import clean

__all__ = ["check_updates"]


def check_updates(
    network: nn.Module,
    layers: Mapping[str, Any],
    updates: Mapping[str, Update],
    file: AdapterFile,
    rank: int,
    *,
    dora: bool,
) -> list[str]:
    """Return notes about layers that are not in the file.

    layers: the adapted layers of `network` by name (peft's wrappers); rank, dora: of the adapter. Raises UserError,
    naming the file, the layer and the shapes, for an update that fits no adapted layer.
    """
    modules = dict(network.named_modules())
    for name, update in updates.items():
        shape, shown = [len(update.up), update.down.shape[1]], f"{file.path}: layer {clean(name, 150)}"
        if name not in modules:
            raise UserError(
                f"{INIT}: {shown} (an update of shape {shape}) is not in this model{nearest(name, list(layers))}; "
                f"allowed is an adapter of this model, whose layer {next(iter(layers))} has the shape "
                f"{_shape(next(iter(layers.values())))}"
            )
        if name not in layers and not bool(update.up.any()) and update.magnitude is None:
            continue  # adds nothing
        if name not in layers:
            of = (
                f"this model's of shape {list(w.shape)}"
                if (w := getattr(modules[name], "weight", None)) is not None
                else ""
            )
            raise UserError(
                f"{INIT}: {shown} (an update of shape {shape}, {of or 'which has no weight here'}) is not among the "
                "layers that backbone.lora.targets bind; name it there, or use an adapter without it"
            )
        if shape != _shape(layers[name]):
            raise UserError(
                f"{INIT}: {shown} has an update of shape {shape}, but this model's layer the shape "
                f"{_shape(layers[name])}; allowed is an adapter of this model"
            )
        if update.magnitude is not None and not (dora and list(update.magnitude.shape) == shape[:1]):
            problem = "backbone.lora.dora: true" if not dora else f"magnitudes of shape {shape[:1]}"
            raise UserError(
                f"{INIT}: {shown} has magnitudes of shape {list(update.magnitude.shape)} (DoRA); allowed with them is "
                f"{problem}"
            )
        if len(update.down) > rank:
            raise UserError(
                f"{INIT}: {shown} has rank {len(update.down)} (matrices of shapes {list(update.down.shape)} and "
                f"{list(update.up.shape)}); allowed is at most backbone.lora.rank, {rank}"
            )
    absent = [name for name in layers if name not in updates]
    if not absent:
        return []
    return [
        f"{INIT}: {len(absent)} of {len(layers)} adapted layers are not in {file.path}, the first is {absent[0]}; they "
        "start at zero"
    ]


def _shape(layer: Any) -> list[int]:
    weight = layer.get_base_layer()
    return [weight.out_features, weight.in_features]
