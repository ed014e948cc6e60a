"""Wan's layers under the names of its first publication, which other programs go by; as in diffusers'
`convert_wan_transformer_to_diffusers`, the other way round."""

from __future__ import annotations

import re

from dgpo_core.lora import Pairs

__all__ = ["comfyui_pairs", "original_name", "original_pairs"]

IN_BLOCK = {
    f"{ours}.{projection}": f"{theirs}.{letter}"
    for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for projection, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
} | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
OUTSIDE = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}


def original_name(name: str) -> str:
    """A layer's name in diffusers to its original one."""
    block = re.fullmatch(r"(blocks\.\d+)\.(.+)", name)
    return OUTSIDE[name] if block is None else f"{block[1]}.{IN_BLOCK[block[2]]}"


def original_pairs(pairs: Pairs) -> Pairs:
    """Pairs by the original names."""
    return {original_name(name): pair for name, pair in pairs.items()}


def comfyui_pairs(pairs: Pairs) -> Pairs:
    """ComfyUI knows Wan's layers by the original names alone, below `diffusion_model`."""
    return {f"diffusion_model.{name}": pair for name, pair in original_pairs(pairs).items()}
