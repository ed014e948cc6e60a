"""Stable Diffusion XL's layers under the names of its first publication (`openaimodel.UNetModel`), where every layer of
an outer block has a number of its own: as in diffusers' `_maybe_map_sgm_blocks_to_diffusers`, the other way round."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

LEVELS = 4
"""Outer blocks on the way down and up, at most."""
LAYERS = 3
"""Numbers of one outer block: two layers and a downsampler, or three layers on the way up."""
KINDS = {"resnets": {"time_emb_proj": "emb_layers.1"}, "attentions": None}

NAMES = Names(
    blocks={
        f"{way}_blocks.{block}.{kind}.{layer}": (f"{theirs}_blocks.{LAYERS * block + layer + first}.{i}", inside)
        for way, theirs, first in (("down", "input", 1), ("up", "output", 0))
        for block in range(LEVELS)
        for layer in range(LAYERS)
        for i, (kind, inside) in enumerate(KINDS.items())
    }
    | {
        f"mid_block.{kind}.{i}": (f"middle_block.{place}", KINDS[kind])
        for place, (kind, i) in enumerate((("resnets", 0), ("attentions", 0), ("resnets", 1)))
    },
    outside={
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    },
)
