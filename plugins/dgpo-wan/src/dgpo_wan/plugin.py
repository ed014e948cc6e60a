"""Plugin declarations of dgpo-wan. Do not import torch or diffusers here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_backbones"]

dgpo_contract = 2


@hookimpl
def dgpo_backbones() -> Sequence[Component]:
    """Declare the text-to-video backbone."""
    summary = "Wan 2.1 and 2.2 text-to-video through diffusers, LoRA through peft"
    return [Component("wan", summary, "dgpo_wan.backbone:WanBackbone", "dgpo_wan.options:WanOptions")]
