"""The low-rank adapter under Wan's names: what it binds by default, and how other programs call that."""

from __future__ import annotations

from dgpo_diffusers.adapter_files import AdapterNames
from dgpo_wan.libraries import WanPipeline
from dgpo_wan.original import comfyui_pairs, original_pairs

__all__ = ["ATTENTION_PROJECTIONS", "NAMES"]

ATTENTION_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Attention projections, of the video to itself (`attn1`) and to the text (`attn2`)."""

NAMES = AdapterNames(WanPipeline, original_pairs, comfyui_pairs)
