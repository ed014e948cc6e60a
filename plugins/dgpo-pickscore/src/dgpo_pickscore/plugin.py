"""Components of dgpo-pickscore. This module must not import heavy dependencies."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_rewards"]

dgpo_contract = 3


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare the three rewards."""
    return [
        Component(
            name="pickscore",
            summary="PickScore v1: human preference learned by a CLIP ViT-H-14",
            implementation="dgpo_pickscore.rewards:PickScoreReward",
            options="dgpo_pickscore.options:PickScoreOptions",
            tiny="dgpo_pickscore.testing:make_tiny_clip",
        ),
        Component(
            name="clipscore",
            summary="CLIPScore: cosine of text and image in any open_clip model",
            implementation="dgpo_pickscore.rewards:ClipScoreReward",
            options="dgpo_pickscore.options:ClipScoreOptions",
        ),
        Component(
            name="aesthetic",
            summary="LAION aesthetic predictor: visual quality of an image, about 1 to 10, independent of the prompt",
            implementation="dgpo_pickscore.rewards:AestheticReward",
            options="dgpo_pickscore.options:AestheticOptions",
        ),
    ]
