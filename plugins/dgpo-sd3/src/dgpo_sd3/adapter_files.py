"""A LoRA as a file, in the formats that other programs read.

One rule for all of them: the scale, alpha / rank, is multiplied into B, and alpha is written as the rank wherever a
format has a place for it. A program that reads it and one that does not then apply the same strength. (diffusers kept
alpha in a metadata field of its own, which nobody else reads.)

Sources: diffusers, `loaders/lora_pipeline.py`; peft, "PEFT checkpoint format" of its documentation; kohya-ss,
`networks/lora_sd3.py` of sd-scripts and `networks/lora_wan.py` of musubi-tuner; ComfyUI, `model_lora_keys_unet` of
`comfy/lora.py` and `comfy/weight_adapter/lora.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from dgpo_core.lora import Pairs, folded_pairs, named, write_peft

__all__ = ["FORMATS", "AdapterNames", "write_adapter"]

FORMATS = ("diffusers", "peft", "kohya", "comfyui")
"""The usual one first."""

FILE = "pytorch_lora_weights.safetensors"
"""What diffusers looks for in a directory; kohya's and ComfyUI's files may have any name."""


@dataclass(frozen=True)
class AdapterNames:
    """Under which names the programs know a model's layers.

    pipeline: diffusers' class, for its `save_lora_weights`; original: pairs by diffusers' names to pairs by those of
    the model's first publication; comfyui: pairs by diffusers' names to pairs by the keys that ComfyUI looks up.
    """

    pipeline: Any
    original: Callable[[Pairs], Pairs]
    comfyui: Callable[[Pairs], Pairs]


def write_adapter(
    transformer: nn.Module, adapter: str, directory: Path, *, format: str, names: AdapterNames, base: str
) -> None:
    """Write the adapter of `transformer` into `directory`, which may be new.

    adapter: its name in peft; format: one of FORMATS; base: the checkpoint's name, for people.
    """
    pairs = folded_pairs(transformer, adapter)
    rank = len(next(iter(pairs.values()))[0])
    config: Any = transformer.peft_config
    # The fields that any version of peft knows: a file with all of this version's is refused by older ones.
    settings = {"r": rank, "lora_alpha": rank, "target_modules": sorted(config[adapter].target_modules)}
    directory.mkdir(parents=True, exist_ok=True)
    if format == "diffusers":
        names.pipeline.save_lora_weights(
            directory,
            transformer_lora_layers=named(pairs, ".lora_A.weight", ".lora_B.weight"),
            transformer_lora_adapter_metadata=settings,
        )
    elif format == "peft":
        write_peft(pairs, settings, directory, base)
    elif format == "kohya":
        flat = {"lora_unet_" + n.replace(".", "_"): pair for n, pair in names.original(pairs).items()}
        _write_with_alphas(flat, directory)
    else:
        _write_with_alphas(names.comfyui(pairs), directory)


def _write_with_alphas(pairs: Pairs, directory: Path) -> None:
    """kohya's three tensors a layer; alpha is the rank, which is that of three for a layer that holds three."""
    tensors = named(pairs, ".lora_down.weight", ".lora_up.weight")
    tensors |= {f"{name}.alpha": torch.tensor(float(len(down))) for name, (down, _) in pairs.items()}
    ranks = {str(len(down)) for down, _ in pairs.values()}
    rank = ranks.pop() if len(ranks) == 1 else "Dynamic"  # kohya's word for ranks that differ
    safetensors.torch.save_file(
        tensors, directory / FILE, {"format": "pt", "ss_network_dim": rank, "ss_network_alpha": rank}
    )
