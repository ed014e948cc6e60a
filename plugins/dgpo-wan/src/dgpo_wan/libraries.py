"""diffusers' Wan pipeline, imported without what the libraries say to nobody in particular."""

from __future__ import annotations

from dgpo_sd3.libraries import quiet

__all__ = ["WanPipeline", "quiet"]

with quiet():
    from diffusers import WanPipeline
