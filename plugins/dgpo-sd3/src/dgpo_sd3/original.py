"""Stable Diffusion 3's layers under the names of its first publication (`MMDiT`), which other programs go by.

There the query, key and value projections are one layer of three times the outputs, and layers that give scale and
shift give shift and scale. As in diffusers' `convert_sd3_transformer_checkpoint_to_diffusers`, the other way round.
"""

from __future__ import annotations

import re

from torch import Tensor

from dgpo_core.lora import Pairs
from dgpo_diffusers.fused import side_by_side, swapped

__all__ = ["comfyui_pairs", "original_pairs"]

QKV = {
    f"{attention}.{projection}": (f"{stream}.{attention}.qkv", place)
    for attention, stream, projections in (
        ("attn", "x_block", ("to_q", "to_k", "to_v")),
        ("attn", "context_block", ("add_q_proj", "add_k_proj", "add_v_proj")),
        ("attn2", "x_block", ("to_q", "to_k", "to_v")),
    )
    for place, projection in enumerate(projections)
}
"""Within a block: a projection to the layer that holds it, and its place there."""
IN_BLOCK = {
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
OUTSIDE = {
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}


def original_pairs(pairs: Pairs) -> Pairs:
    """Pairs by the original names; up to three are laid side by side in a layer that holds query, key and value."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    fused: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name, (down, up) in pairs.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", name)
        if block is None:
            found[OUTSIDE[name]] = (down, swapped(up) if name == "norm_out.linear" else up)
            continue
        prefix, inner = f"joint_blocks.{block[1]}", block[2]
        if inner in QKV:
            layer, place = QKV[inner]
            fused.setdefault(f"{prefix}.{layer}", {})[place] = (down, up)
        else:
            # The text stream ends in the last block: its norm has a scale and a shift alone, as norm_out has.
            ends = inner == "norm1_context.linear" and len(up) == 2 * down.shape[1]
            found[f"{prefix}.{IN_BLOCK[inner]}"] = (down, swapped(up) if ends else up)
    for name, parts in fused.items():
        outputs = len(next(iter(parts.values()))[1])
        found[name] = side_by_side(parts, [outputs] * 3)
    return found


def comfyui_pairs(pairs: Pairs) -> Pairs:
    """ComfyUI knows SD3's layers by diffusers' names too (`mmdit_to_diffusers`), and finds their place by itself."""
    return {f"transformer.{name}": pair for name, pair in pairs.items()}
