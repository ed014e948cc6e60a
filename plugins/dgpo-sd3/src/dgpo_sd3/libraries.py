"""diffusers' pipeline of Stable Diffusion 3, imported without what the libraries say to nobody in particular."""

from __future__ import annotations

from dgpo_diffusers.libraries import quiet, unread

__all__ = ["StableDiffusion3Pipeline", "quiet", "unread"]

with quiet():
    from diffusers import StableDiffusion3Pipeline
