"""Stable Diffusion XL's layers under the names of its first publication (`openaimodel.UNetModel`), which other programs
go by: every layer of an outer block has a number of its own there. As in diffusers'
`_maybe_map_sgm_blocks_to_diffusers`, the other way round."""

from __future__ import annotations

import re

from dgpo_core.lora import Pairs

__all__ = ["comfyui_pairs", "original_name", "original_pairs"]

LAYERS = 3
"""Numbers of one outer block: two layers and a downsampler, or three layers on the way up."""
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
LAYER = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(resnets|attentions)\.(\d+)\.(.+)")


def original_name(name: str) -> str:
    """A layer's name in diffusers to its original one."""
    found = LAYER.fullmatch(name)
    if found is None:
        return OUTSIDE[name]
    way, block, kind, layer, inner = found.groups()
    attention = kind == "attentions"
    inner = inner.replace("time_emb_proj", "emb_layers.1")
    if way is None:
        return f"middle_block.{1 if attention else 2 * int(layer)}.{inner}"
    place = LAYERS * int(block) + int(layer)
    outer = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
    return f"{outer}.{int(attention)}.{inner}"


def original_pairs(pairs: Pairs) -> Pairs:
    """Pairs by the original names."""
    return {original_name(name): pair for name, pair in pairs.items()}


def comfyui_pairs(pairs: Pairs) -> Pairs:
    """ComfyUI knows the original names below `diffusion_model`."""
    return {f"diffusion_model.{name}": pair for name, pair in original_pairs(pairs).items()}
