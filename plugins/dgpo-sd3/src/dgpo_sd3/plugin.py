"""Plugin declarations of dgpo-sd3. Do not import torch or diffusers here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_backbones"]

dgpo_contract = 3


@hookimpl
def dgpo_backbones() -> Sequence[Component]:
    """Declare the text-to-image backbone."""
    summary = "Stable Diffusion 3 and 3.5 through diffusers, LoRA through peft (by default of attn2 too)"
    return [
        Component(
            "sd3",
            summary,
            "dgpo_sd3.backbone:SD3Backbone",
            "dgpo_sd3.options:SD3Options",
            tiny="dgpo_sd3.testing:make_tiny_checkpoint",
        )
    ]
