"""Components of dgpo-pickscore. This module must not import heavy dependencies."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_rewards"]

dgpo_contract = 3


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare the rewards."""
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
            name="hpsv2",
            summary="HPS v2.1: human preference learned by a CLIP ViT-H-14 that sees the whole image, about 0.2 "
            "to 0.4; weights 3.9 GB, Apache-2.0",
            implementation="dgpo_pickscore.hpsv2:HpsReward",
            options="dgpo_pickscore.options:HpsOptions",
        ),
        Component(
            name="imagereward",
            summary="ImageReward v1.0: human preference learned by BLIP-L, about -2 to 2, best used as a monitor; "
            "weights 1.8 GB, Apache-2.0",
            implementation="dgpo_pickscore.imagereward:ImageRewardReward",
            options="dgpo_pickscore.options:ImageRewardOptions",
            tiny="dgpo_pickscore.testing:make_tiny_imagereward",
        ),
        Component(
            name="siglipscore",
            summary="SigLIP score: cosine of text and image in a SigLIP or SigLIP 2 model; weights 4.5 GB, Apache-2.0",
            implementation="dgpo_pickscore.siglip:SiglipReward",
            options="dgpo_pickscore.options:SiglipOptions",
            tiny="dgpo_pickscore.testing:make_tiny_siglip",
        ),
        Component(
            name="aesthetic",
            summary="LAION aesthetic predictor: visual quality of an image, about 1 to 10, independent of the prompt",
            implementation="dgpo_pickscore.rewards:AestheticReward",
            options="dgpo_pickscore.options:AestheticOptions",
        ),
    ]
