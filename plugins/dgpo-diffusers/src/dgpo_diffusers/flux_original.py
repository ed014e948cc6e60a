"""FLUX.1's layers under the names of its first publication, which other programs go by.

There queries, keys and values are one layer, with the first layer of the MLP in single blocks, and the last layer that
gives scale and shift gives shift and scale. As in diffusers' `convert_flux_transformer_checkpoint_to_diffusers`, the
other way round.
"""

from __future__ import annotations

from torch import Tensor

from dgpo_core.lora import Pairs
from dgpo_diffusers.fused import side_by_side, swapped

__all__ = ["comfyui_pairs", "original_pairs"]

BLOCKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
FUSED = {
    f"{kind}.{layer}": (fused, place)
    for kind, fused, layers in (
        ("transformer_blocks", "img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
        ("transformer_blocks", "txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        ("single_transformer_blocks", "linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
    )
    for place, layer in enumerate(layers)
}
"""A layer of a block to the one that holds it, and its place there."""
IN_BLOCK = {
    "transformer_blocks.norm1.linear": "img_mod.lin",
    "transformer_blocks.norm1_context.linear": "txt_mod.lin",
    "transformer_blocks.attn.to_out.0": "img_attn.proj",
    "transformer_blocks.attn.to_add_out": "txt_attn.proj",
    "transformer_blocks.ff.net.0.proj": "img_mlp.0",
    "transformer_blocks.ff.net.2": "img_mlp.2",
    "transformer_blocks.ff_context.net.0.proj": "txt_mlp.0",
    "transformer_blocks.ff_context.net.2": "txt_mlp.2",
    "single_transformer_blocks.norm.linear": "modulation.lin",
    "single_transformer_blocks.proj_out": "linear2",
}
OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
} | {
    f"time_text_embed.{ours}_embedder.linear_{i}": f"{theirs}_in.{end}_layer"
    for ours, theirs in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector"))
    for i, end in ((1, "in"), (2, "out"))
}
MLP = 4
"""How many times as wide as the model the hidden layer of a block is."""


def original_pairs(pairs: Pairs) -> Pairs:
    """Pairs by the original names; up to four are laid side by side in a layer that holds several."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    fused: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    for name, (down, up) in pairs.items():
        kind, _, rest = name.partition(".")
        if kind not in BLOCKS:
            found[OUTSIDE[name]] = (down, swapped(up) if name == "norm_out.linear" else up)
            continue
        number, _, layer = rest.partition(".")
        block, key = f"{BLOCKS[kind]}.{number}", f"{kind}.{layer}"
        if key in FUSED:
            theirs, place = FUSED[key]
            fused.setdefault(f"{block}.{theirs}", {})[place] = (down, up)
        else:
            found[f"{block}.{IN_BLOCK[key]}"] = (down, up)
    for name, parts in fused.items():
        width = next(iter(parts.values()))[0].shape[1]
        found[name] = side_by_side(parts, (width, width, width, MLP * width)[: 4 if name.endswith("linear1") else 3])
    return found


def comfyui_pairs(pairs: Pairs) -> Pairs:
    """ComfyUI knows FLUX.1's layers by diffusers' names too (`flux_to_diffusers`), and finds their place by itself."""
    return {f"transformer.{name}": pair for name, pair in pairs.items()}
