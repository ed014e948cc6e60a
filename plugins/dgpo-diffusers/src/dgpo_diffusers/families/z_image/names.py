"""Names of Z-Image's layers in other programs.

kohya-ss's musubi-tuner has the names of Z-Image's own repository, which are those of diffusers. ComfyUI has the names
of Lumina's code, in which queries, keys and values are one layer: the inverse of diffusers'
`convert_z_image_transformer_checkpoint_to_diffusers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgpo_diffusers.original import Names

if TYPE_CHECKING:
    from dgpo_core.lora import Pairs

__all__ = ["COMFYUI", "kohya_pairs"]

BLOCK = {
    "attention.to_q attention.to_k attention.to_v": "attention.qkv",
    "attention.to_out.0": "attention.out",
    **{name: name for name in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")},
}

COMFYUI = Names(
    blocks={f"{name}.*": (f"{name}.*", BLOCK) for name in ("layers", "noise_refiner", "context_refiner")},
    outside={
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
        **{name: name for name in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")},
    },
    comfyui="diffusion_model",
)


def kohya_pairs(pairs: Pairs) -> Pairs:
    """Return the pairs as they are."""
    return pairs
