"""Read adapters for diffusers models: files of diffusers, and of programs that name a model's layers otherwise.

Names are looked up in a table made with the functions that also name the layers of exported files (`Layout.original`,
`Layout.comfyui`). Files with other names are converted by the pipeline's own `lora_state_dict`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.lora.files import INIT, TWICE, AdapterFile, Update, assemble, metadata_config
from dgpo_diffusers.libraries import quiet
from dgpo_schemas.text import clean, error_text

if TYPE_CHECKING:
    from dgpo_diffusers.layout import Layout

__all__ = ["pipeline_updates"]

METADATA = "lora_adapter_metadata"
"""diffusers' key in the safetensors metadata: peft's configuration, each field after the network's name and a dot."""
ENDINGS = {
    ".lora_A.weight": ".lora_A.weight", ".lora_B.weight": ".lora_B.weight", ".lora_down.weight": ".lora_A.weight",
    ".lora_up.weight": ".lora_B.weight", ".alpha": ".alpha", ".lora_magnitude_vector": ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight": ".lora_magnitude_vector", ".dora_scale": ".lora_magnitude_vector",
}  # fmt: skip
"""Suffixes of tensor names to peft's."""

OTHER_UPDATES = re.compile(r"\.(hada|lokr|oft|boft)_|\.diff(_b)?$")
"""In tensor names of LyCORIS's other kinds of updates, and of differences of whole weights."""
TEXT_ENCODERS = (
    "text_encoder.",
    "text_encoder_2.",
    "text_encoder_3.",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_te3_",
)
"""Prefixes of tensor names of text encoders, in files of diffusers and of kohya."""

Table = dict[str, dict[str, tuple[Tensor, int]]]
"""A layer's name in a file to the layers that it is in diffusers: their rows of its output, and the number of all."""


def pipeline_updates(file: AdapterFile, layout: Layout, network: nn.Module) -> dict[str, Update]:
    """Return the updates of a file for the trained denoiser, by layer name.

    Raises UserError for a file that cannot be converted, and for one with layers of other networks, such as text
    encoders.
    """
    prefix = f"{layout.denoiser}."
    if not any("lora" in name.lower() for name in file.tensors):
        raise file.unreadable(
            next(iter(file.tensors)), "and no matrices of a LoRA; allowed is an adapter (weights of a model are those "
            "of backbone.checkpoint)",
        )  # fmt: skip
    other = next((name for name in file.tensors if OTHER_UPDATES.search(name)), None)
    if other is not None:
        raise file.unreadable(other, "which is not read; allowed are low-rank matrices of linear layers (LoRA, DoRA)")
    config = metadata_config(file, METADATA, prefix)
    table, tensors = _table(layout, network), {}
    for name, tensor in file.tensors.items():
        ending = next((ending for ending in ENDINGS if name.endswith(ending)), "?")
        if name.startswith(TEXT_ENCODERS):
            raise file.unreadable(
                name, "which is not of the denoiser that is trained, but of a text encoder; remove such tensors"
            )
        if name.removesuffix(ending) not in table:
            return _by_pipeline(file, layout, network, config)
        if (key := name.removesuffix(ending) + ENDINGS[ending]) in tensors:
            raise file.unreadable(name, TWICE)
        tensors[key] = tensor
    found: dict[str, Update] = {}
    for name, update in assemble(file, tensors, config, prefix).items():
        for layer, (rows, outputs) in table[name].items():
            if layer in found:
                raise file.unreadable(name, TWICE)
            same = len(table[name]) == 1 and torch.equal(rows, torch.arange(outputs))
            found[layer] = update if same else _part(file, name, update, rows, outputs)
    return found


def _part(file: AdapterFile, name: str, update: Update, rows: Tensor, outputs: int) -> Update:
    """Return the update of the layer that computes these rows, of the columns of B that are not zero in them."""
    if len(update.up) != outputs:
        raise file.unreadable(
            name, f"of shape {[len(update.up), update.down.shape[1]]}; allowed is an adapter of this model, where it "
            f"has {outputs} outputs",
        )  # fmt: skip
    up = update.up[rows]
    used = up.abs().sum(0) > 0
    magnitude = None if update.magnitude is None else update.magnitude[rows]
    return Update(update.down[used], up[:, used], update.scale, magnitude)


def _table(layout: Layout, network: nn.Module) -> Table:
    """Return the names that files of diffusers, kohya and ComfyUI have for the linear layers of a denoiser."""
    table: Table = {}
    layers = {
        name.removesuffix(".base_layer"): module for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }  # fmt: skip
    for name, linear in layers.items():
        # B of rank 1 whose rows are numbered tells where the functions put each row.
        pair = torch.zeros(1, linear.in_features), torch.arange(1.0, linear.out_features + 1)[:, None]
        found = {f"{layout.denoiser}.{name}": pair, f"lora_unet_{name.replace('.', '_')}": pair}
        for names, forms in ((layout.original, ("lora_unet_", "diffusion_model.")), (layout.comfyui, ("",))):
            try:
                renamed = names({name: pair}) if names is not None else {}
            except KeyError:  # a layer that the original model does not have
                continue
            for original, moved in renamed.items():
                for form in forms:
                    found[form + (original.replace(".", "_") if form.endswith("_") else original)] = moved
        for key, (_, up) in found.items():
            numbers = up.flatten()
            rows = numbers.argsort(stable=True)[int((numbers == 0).sum()) :]
            table.setdefault(key, {})[name] = rows, len(numbers)
    return table


def _by_pipeline(
    file: AdapterFile, layout: Layout, network: nn.Module, config: Mapping[str, Any] | None
) -> dict[str, Update]:
    from diffusers.utils import convert_unet_state_dict_to_peft

    scaled = next((name for name in file.tensors if name.endswith(".dora_scale")), None)
    if scaled is not None:  # diffusers drops it
        raise file.unreadable(scaled, "a DoRA of layers that this model does not have by this name")
    tensors, alphas = _converted(file, layout, network)
    prefix = f"{layout.denoiser}."
    foreign = next((name for name in tensors if not name.startswith(prefix)), None)
    if foreign is not None:
        raise file.unreadable(
            foreign, f"which is not of the denoiser that is trained; allowed are names that begin with {prefix}, and "
            f"those of kohya, ComfyUI and other programs that diffusers converts for {layout.pipeline}",
        )  # fmt: skip
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    peft = any("lora_A" in name for name in own)
    own = own if peft else convert_unet_state_dict_to_peft(own)
    for name, alpha in alphas.items():
        if name.startswith(prefix):
            layer = name.removeprefix(prefix).removesuffix(".alpha")
            if layer.endswith(".weight"):  # an attention processor's, named after A
                (layer,) = convert_unet_state_dict_to_peft({layer: alpha})
            own[layer.removesuffix(".lora_A.weight") + ".alpha"] = torch.as_tensor(alpha)
    return assemble(file, own, config)


def _converted(file: AdapterFile, layout: Layout, network: nn.Module) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the tensors and alphas by diffusers' names."""
    convert = layout.kind.lora_state_dict
    arguments: dict[str, Any] = {"unet_config": network.config} if layout.denoiser == "unet" else {}
    if "return_alphas" in inspect.signature(convert).parameters:
        arguments["return_alphas"] = True
    try:
        with quiet():
            found = convert({name: tensor.clone() for name, tensor in file.tensors.items()}, **arguments)
    except Exception as error:  # the converters raise anything for names that they do not expect
        reason = clean(" ".join(error_text(error).split()), 200)  # some list all names
        raise UserError(
            f"{INIT}: {file.path} cannot be converted by diffusers for {layout.pipeline}: {reason}; allowed is an "
            "adapter of this model in the format of diffusers, peft, kohya or ComfyUI"
        ) from error
    tensors, alphas = found if isinstance(found, tuple) else (found, None)
    return tensors, alphas or {}
