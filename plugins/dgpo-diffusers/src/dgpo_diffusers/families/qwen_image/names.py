"""Names of Qwen-Image's layers in kohya's and ComfyUI's files: diffusers' names, the original ones."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

OUTSIDE = ("img_in", "txt_in", "norm_out.linear", "proj_out")
TIME = tuple(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2))

NAMES = Names(
    blocks={"transformer_blocks.*": ("transformer_blocks.*", None)},
    outside={name: name for name in (*OUTSIDE, *TIME)},
    comfyui="transformer",
)
