"""Stable Diffusion 3's layers under the names of its first publication (`MMDiT`): as in diffusers'
`convert_sd3_transformer_checkpoint_to_diffusers`, the other way round."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

NAMES = Names(
    comfyui="transformer",
    # The text stream ends in the last block: its norm has a scale and a shift alone, as norm_out has.
    swapped=("norm_out.linear", "norm1_context.linear"),
    blocks={
        "transformer_blocks.*": (
            "joint_blocks.*",
            {
                "attn.to_q attn.to_k attn.to_v": "x_block.attn.qkv",
                "attn.add_q_proj attn.add_k_proj attn.add_v_proj": "context_block.attn.qkv",
                "attn2.to_q attn2.to_k attn2.to_v": "x_block.attn2.qkv",
                "attn.to_out.0": "x_block.attn.proj",
                "attn.to_add_out": "context_block.attn.proj",
                "attn2.to_out.0": "x_block.attn2.proj",
                "norm1.linear": "x_block.adaLN_modulation.1",
                "norm1_context.linear": "context_block.adaLN_modulation.1",
                "ff.net.0.proj": "x_block.mlp.fc1",
                "ff.net.2": "x_block.mlp.fc2",
                "ff_context.net.0.proj": "context_block.mlp.fc1",
                "ff_context.net.2": "context_block.mlp.fc2",
            },
        ),
    },
    outside={
        "context_embedder": "context_embedder",
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
)
