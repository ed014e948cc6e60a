"""Names of FLUX.2's layers: those that a LoRA adapts, and the original ones, the inverse of diffusers'
`convert_flux2_transformer_checkpoint_to_diffusers`."""

from __future__ import annotations

from dgpo_diffusers.layout import JOINT_ATTENTION
from dgpo_diffusers.original import Names

__all__ = ["LORA_TARGETS", "NAMES"]

MOST_BLOCKS = 48
"""Number of single blocks of the largest FLUX.2 model."""
LORA_TARGETS = (
    *JOINT_ATTENTION,
    "to_qkv_mlp_proj",
    # As a suffix, `attn.to_out` would also match the containers of double blocks' `to_out.0`, which are not layers.
    *(f"single_transformer_blocks.{i}.attn.to_out" for i in range(MOST_BLOCKS)),
)
"""All attention projections. In single blocks, attention and MLP share two; without these, only 5 of the 25 blocks of
the 4B model would be adapted."""

NAMES = Names(
    blocks={
        "transformer_blocks.*": (
            "double_blocks.*",
            {
                "attn.to_q attn.to_k attn.to_v": "img_attn.qkv",
                "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "txt_attn.qkv",
                "attn.to_out.0": "img_attn.proj",
                "attn.to_add_out": "txt_attn.proj",
                "ff.linear_in": "img_mlp.0",
                "ff.linear_out": "img_mlp.2",
                "ff_context.linear_in": "txt_mlp.0",
                "ff_context.linear_out": "txt_mlp.2",
            },
        ),
        # The projections of a single block are fused in diffusers too.
        "single_transformer_blocks.*": (
            "single_blocks.*",
            {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"},
        ),
    },
    outside={
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    }
    | {
        f"time_guidance_embed.{ours}_embedder.linear_{i}": f"{theirs}_in.{end}_layer"
        for ours, theirs in (("timestep", "time"), ("guidance", "guidance"))
        for i, end in ((1, "in"), (2, "out"))
    }
    | {
        f"{stream}.linear": f"{stream}.lin"
        for stream in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    },
    swapped=("norm_out.linear",),
)
