"""Original names of FLUX.1's layers: the inverse of diffusers' `convert_flux_transformer_checkpoint_to_diffusers`."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

NAMES = Names(
    blocks={
        "transformer_blocks.*": (
            "double_blocks.*",
            {
                "attn.to_q attn.to_k attn.to_v": "img_attn.qkv",
                "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "txt_attn.qkv",
                "attn.to_out.0": "img_attn.proj",
                "attn.to_add_out": "txt_attn.proj",
                "norm1.linear": "img_mod.lin",
                "norm1_context.linear": "txt_mod.lin",
                "ff.net.0.proj": "img_mlp.0",
                "ff.net.2": "img_mlp.2",
                "ff_context.net.0.proj": "txt_mlp.0",
                "ff_context.net.2": "txt_mlp.2",
            },
        ),
        "single_transformer_blocks.*": (
            "single_blocks.*",
            {
                "attn.to_q attn.to_k attn.to_v proj_mlp": "linear1",
                "norm.linear": "modulation.lin",
                "proj_out": "linear2",
            },
        ),
    },
    outside={
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    }
    | {
        f"time_text_embed.{ours}_embedder.linear_{i}": f"{theirs}_in.{end}_layer"
        for ours, theirs in (("timestep", "time"), ("guidance", "guidance"), ("text", "vector"))
        for i, end in ((1, "in"), (2, "out"))
    },
    swapped=("norm_out.linear",),
    comfyui="transformer",
)
