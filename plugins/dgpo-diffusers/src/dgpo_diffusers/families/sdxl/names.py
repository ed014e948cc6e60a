"""Original names of Stable Diffusion XL's layers (`openaimodel.UNetModel`): the inverse of diffusers'
`_maybe_map_sgm_blocks_to_diffusers`. In the original, the layers of all outer blocks are numbered consecutively."""

from __future__ import annotations

from dgpo_diffusers.original import Names

__all__ = ["NAMES"]

LEVELS = 4
"""Maximum number of down blocks and of up blocks."""
LAYERS = 3
"""Numbers per outer block: two layers and a downsampler in a down block, three layers in an up block."""
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
