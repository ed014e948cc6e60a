"""Original names of Wan's layers: the inverse of diffusers' `convert_wan_transformer_to_diffusers`."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}

IMAGE = {"add_k_proj": "k_img", "add_v_proj": "v_img"}
"""Keys and values of condition images, in image-to-video."""

NAMES = Names(
    blocks={
        "blocks.*": (
            "blocks.*",
            {f"attn1.{name}": f"self_attn.{original}" for name, original in ATTENTION.items()}
            | {f"attn2.{name}": f"cross_attn.{original}" for name, original in (ATTENTION | IMAGE).items()}
            | {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"},
        ),
    },
    outside={
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
    },
)
