"""Read adapter files: safetensors, never pickles.

Every problem is a one-line UserError that begins with `backbone.lora.init` and names the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.system.headers import BadHeader, read_header
from dgpo_core.weights import read_json
from dgpo_schemas.text import clean

__all__ = [
    "INIT", "TWICE", "AdapterFile", "Pair", "Pairs", "Update", "assemble", "metadata_config", "named",
    "open_adapter", "peft_updates",
]  # fmt: skip

INIT = "backbone.lora.init"
PEFT, DIFFUSERS = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
"""File names of peft and diffusers; other programs use any name."""
CONFIG = "adapter_config.json"
SAFETENSORS = ".safetensors"
PREFIX = "base_model.model."
"""Prefix of peft's tensor names."""
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".alpha": "alpha",
}
"""Suffixes of tensor names to what the tensor is."""
SUBTRACTED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations of peft, or their beginnings, that subtract the initial update from the base weights."""
PEFT_ALPHA = 8.0
"""peft's default for `lora_alpha`."""
SHOWN = 5
TWICE = "a layer that it has by another name too; allowed is one adapter per file"

Pair: TypeAlias = tuple[Tensor, Tensor]
"""A [rank, inputs] and B [outputs, rank] of one layer."""
Pairs: TypeAlias = Mapping[str, Pair]
"""Layer name to its matrices, float32 on the CPU. The weight update is B A."""


@dataclass(frozen=True, slots=True)
class Update:
    """The adapter of one layer: the weight update is scale * up @ down.

    down, up: A [rank, inputs] and B [outputs, rank], as in the file; magnitude: [outputs], the norms of the rows of the
    adapted weight (DoRA, arXiv 2402.09353), or None.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    magnitude: Tensor | None = None


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The contents of an adapter file. metadata: of the safetensors header; config: peft's adapter_config.json, or
    None."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None

    @property
    def is_peft(self) -> bool:
        """Whether the tensor names are those of peft."""
        return any(name.startswith(PREFIX) for name in self.tensors)

    def unreadable(self, name: str, why: str) -> UserError:
        """Return the UserError for a tensor."""
        return UserError(f"{INIT}: {self.path} has {clean(name, 150)}, {why}")


def named(pairs: Pairs, down: str, up: str) -> dict[str, Tensor]:
    """Return each layer's matrices as a flat dict, with the suffixes `down` for A and `up` for B."""
    return {name + suffix: m for name, pair in pairs.items() for suffix, m in zip((down, up), pair, strict=True)}


def open_adapter(place: Path) -> AdapterFile:
    """Read an adapter file, or the one in a directory. Raises UserError."""
    path = _file_in(place) if place.is_dir() else place
    if path.suffix != SAFETENSORS or not path.is_file():
        what = "is not a safetensors file" if path.exists() else "does not exist"
        raise UserError(
            f"{INIT}: {path} {what}; allowed is an adapter's file that ends in {SAFETENSORS}, or a directory with one"
        )
    try:
        with path.open("rb") as file:
            read_header(file, os.fstat(file.fileno()).st_size)
        with safetensors.safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = dict(opened.metadata() or {})
    except (OSError, BadHeader, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{INIT}: {path} cannot be read: {reason}; allowed is a complete safetensors file") from error
    config = path.parent / CONFIG
    found = AdapterFile(path, tensors, metadata, read_json(config, INIT) if config.is_file() else None)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() and not name.endswith(".alpha"):
            raise found.unreadable(name, f"{str(tensor.dtype).removeprefix('torch.')}; quantized adapters are not read")
        if not bool(tensor.float().isfinite().all()):
            raise found.unreadable(name, "whose values are not all finite")
    if not tensors:
        raise UserError(f"{INIT}: {path} contains no tensors")
    return found


def _file_in(directory: Path) -> Path:
    """Return the adapter file of a directory. Raises UserError if there is none, or if there are several."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise UserError(f"{INIT}: {directory} cannot be read: {error.strerror or error}") from error
    if {"config.yaml", "run.json"} <= set(names):
        raise UserError(
            f"{INIT}: {directory} is the directory of a run, not an adapter; start from its weights with run.init_from"
        )
    usual = [name for name in (DIFFUSERS, PEFT) if name in names]
    found = usual or [name for name in names if name.endswith(SAFETENSORS)]
    if len(found) == 1:
        return directory / found[0]
    there = ", ".join((found or names)[:SHOWN]) or "nothing"
    raise UserError(
        f"{INIT}: {directory} contains {there}; allowed is a directory with one adapter ({DIFFUSERS}, or {PEFT} with "
        f"{CONFIG}), or the file itself"
    )


def peft_updates(file: AdapterFile) -> dict[str, Update]:
    """Return the updates of a file with peft's tensor names, by layer name. Raises UserError."""
    if file.config is None:
        raise UserError(f"{INIT}: {file.path} is in peft's format, which has its scale in {CONFIG}; put it beside it")
    if file.config.get("peft_type", "LORA") != "LORA":
        kind = clean(str(file.config["peft_type"]), 50)
        raise UserError(f"{INIT}: {file.path} is an adapter of type {kind}; allowed is LORA")
    tensors: dict[str, Tensor] = {}
    for name, tensor in file.tensors.items():
        key = name.removeprefix(PREFIX).replace(".default.weight", ".weight")
        if key in tensors:
            raise file.unreadable(name, TWICE)
        tensors[key] = tensor
    return assemble(file, tensors, file.config)


def assemble(
    file: AdapterFile, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, prefix: str = ""
) -> dict[str, Update]:
    """Return the updates of tensors that have peft's suffixes, by layer name.

    config: peft's configuration, from which the scale follows, of layer names without `prefix`; without it, the scale
    is alpha / rank of a layer's own alpha, or 1. Raises UserError for tensors that belong to no low-rank matrix, and
    for incomplete layers.
    """
    if config is not None:
        _check_config(file, config)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
        if ending is None:
            raise file.unreadable(
                name, "which is not read; allowed are low-rank matrices of linear layers (LoRA, DoRA)"
            )
        parts = layers.setdefault(name.removesuffix(ending), {})
        if ENDINGS[ending] in parts:
            raise file.unreadable(name, TWICE)
        parts[ENDINGS[ending]] = tensor
    found = {}
    for layer, parts in layers.items():
        down, up = parts.get("down"), parts.get("up")
        if down is None or up is None:
            ending = next(ending for ending, part in ENDINGS.items() if part in parts)
            raise file.unreadable(f"{layer}{ending}", "but not both low-rank matrices of this layer")
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or len(down) == 0:
            shapes = f"matrices of shapes {list(down.shape)} and {list(up.shape)}"
            raise file.unreadable(layer, f"{shapes}; allowed are [rank, inputs] and [outputs, rank], of rank 1 or more")
        alpha, magnitude = parts.get("alpha"), parts.get("magnitude")
        if alpha is not None and alpha.numel() != 1:
            raise file.unreadable(f"{layer}.alpha", f"of shape {list(alpha.shape)}; allowed is one number")
        if magnitude is None and config is not None and config.get("use_dora"):
            raise file.unreadable(layer, "without the magnitudes that its configuration has (use_dora: true)")
        scale = _scale(file, layer.removeprefix(prefix), len(down), None if alpha is None else float(alpha), config)
        found[layer] = Update(
            down.float(), up.float(), scale, None if magnitude is None else magnitude.float().squeeze(-1)
        )
    return found


def _check_config(file: AdapterFile, config: Mapping[str, Any]) -> None:
    """Raise UserError for a configuration of peft from which the update does not follow."""
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.lower().startswith(SUBTRACTED):
        raise UserError(
            f"{INIT}: {file.path} was initialized with {clean(initial, 50)}, which also changes the base weights; "
            "convert it to a LoRA with peft's `save_pretrained(..., path_initial_model_for_weight_conversion=...)`"
        )
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key) or False, bool):
            raise UserError(f"{INIT}: {file.path}: {key} of its configuration is not true or false")


def _scale(file: AdapterFile, layer: str, rank: int, alpha: float | None, config: Mapping[str, Any] | None) -> float:
    """Return the scale of a layer's update, as peft computes it from its configuration."""
    if config is None:
        return 1.0 if alpha is None else alpha / rank
    try:
        patterns: dict[str, Any] = dict(config.get("alpha_pattern") or {})
        matching = [key for key in patterns if re.match(rf"(.*\.)?({key})$", layer)]
        alpha = float(patterns[matching[0]] if matching else config.get("lora_alpha", PEFT_ALPHA))
    except (TypeError, ValueError, OverflowError, re.error) as error:
        raise UserError(
            f"{INIT}: {file.path}: the adapter's configuration has no valid alpha: {clean(str(error), 200)}"
        ) from error
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def metadata_config(file: AdapterFile, key: str, prefix: str) -> dict[str, Any] | None:
    """Return peft's configuration from the JSON in the metadata `key`, of the network `prefix`; None if there is
    none."""
    try:
        found = json.loads(file.metadata[key])
    except KeyError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{INIT}: {file.path}: the metadata {key} is not JSON: {clean(str(error), 200)}") from error
    if not isinstance(found, dict):
        raise UserError(f"{INIT}: {file.path}: the metadata {key} must be a JSON object, not {type(found).__name__}")
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)} or None
