"""Backbones of the size of published ones, whose weights are random."""

from __future__ import annotations

from dgpo_sd3.backbone import SD3Backbone
from dgpo_wan.backbone import WanBackbone

__all__ = ["RandomSD3", "RandomWan"]


class RandomSD3(SD3Backbone):
    """Stable Diffusion 3."""

    without_weights = True


class RandomWan(WanBackbone):
    """Wan."""

    without_weights = True
