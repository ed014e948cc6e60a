"""Original names of Lumina2's layers (`NextDiT`): the inverse of diffusers' `convert_lumina2_to_diffusers`."""

from __future__ import annotations

from fractions import Fraction

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

BLOCK = {
    "attn.to_q attn.to_k attn.to_v": "attention.qkv",
    "attn.to_out.0": "attention.out",
    "norm1.linear": "adaLN_modulation.1",
} | {f"feed_forward.linear_{i}": f"feed_forward.w{i}" for i in (1, 2, 3)}

NAMES = Names(
    blocks={f"{name}.*": (f"{name}.*", BLOCK) for name in ("layers", "noise_refiner", "context_refiner")},
    outside={
        "x_embedder": "x_embedder",
        "time_caption_embed.caption_embedder.1": "cap_embedder.1",
        "time_caption_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_caption_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "norm_out.linear_1": "final_layer.adaLN_modulation.1",
        "norm_out.linear_2": "final_layer.linear",
    },
    # Three heads of queries share a head of keys and values.
    widths={"attn.to_k": Fraction(1, 3), "attn.to_v": Fraction(1, 3)},
)
