"""Original names of LTX-Video's layers: the inverse of diffusers' scripts/convert_ltx_to_diffusers.py."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

NAMES = Names(
    blocks={"transformer_blocks.*": ("transformer_blocks.*", None)},
    outside={
        "proj_in": "patchify_proj",
        "proj_out": "proj_out",
        "time_embed.linear": "adaln_single.linear",
    }
    | {
        f"{ours}.linear_{i}": f"{theirs}.linear_{i}"
        for ours, theirs in (
            ("time_embed.emb.timestep_embedder", "adaln_single.emb.timestep_embedder"),
            ("caption_projection", "caption_projection"),
        )
        for i in (1, 2)
    },
)
