"""diffusers' Wan pipeline, imported without what the libraries say to nobody in particular."""

from __future__ import annotations

from dgpo_diffusers.libraries import quiet, unread

__all__ = ["WanPipeline", "prompt_clean", "quiet", "unread"]

with quiet():
    from diffusers import WanPipeline
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean
