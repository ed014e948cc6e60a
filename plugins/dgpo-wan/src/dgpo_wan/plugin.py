"""Plugin declarations of dgpo-wan. Do not import torch or diffusers here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_backbones"]

dgpo_contract = 3


@hookimpl
def dgpo_backbones() -> Sequence[Component]:
    """Declare the backbones."""
    return [
        Component(
            "wan",
            "Wan 2.1 and 2.2 text-to-video through diffusers, LoRA through peft",
            "dgpo_wan.backbone:WanBackbone",
            "dgpo_wan.options:WanOptions",
            tiny="dgpo_wan.testing:make_tiny_checkpoint",
        ),
        Component(
            "wan-i2v",
            "Wan 2.1 and 2.2 image-to-video through diffusers",
            "dgpo_wan.i2v.backbone:ImageToVideoBackbone",
            "dgpo_wan.i2v.options:ImageToVideoOptions",
            tiny="dgpo_wan.i2v.tiny:make_tiny_i2v",
        ),
    ]
