"""The low-rank adapter under Stable Diffusion 3's names: what it binds by default, and how other programs call that."""

from __future__ import annotations

from dgpo_diffusers.adapter_files import AdapterNames
from dgpo_sd3.libraries import StableDiffusion3Pipeline
from dgpo_sd3.original import comfyui_pairs, original_pairs

__all__ = ["ATTENTION_PROJECTIONS", "NAMES"]

ATTENTION_PROJECTIONS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""Attention projections of the image and the text stream. As endings they also match SD3.5's second attention of a
block (`attn2`), which has an image stream alone. DGPO's authors adapt less: the same endings after `attn.`."""

NAMES = AdapterNames(StableDiffusion3Pipeline, original_pairs, comfyui_pairs)
