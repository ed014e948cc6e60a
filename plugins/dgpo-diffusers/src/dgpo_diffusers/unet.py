"""Backbones whose denoiser is Stable Diffusion's UNet: its kinds of prediction and the original names of its layers.

In the original (`openaimodel.UNetModel`), the layers of all outer blocks are numbered consecutively; `NAMES` is the
inverse of diffusers' `_maybe_map_sgm_blocks_to_diffusers`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpo_core.errors import UserError
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.original import Names
from dgpo_diffusers.parameterization import EpsilonPrediction, VPrediction
from dgpo_schemas.problems import show

__all__ = ["ATTENTIONS", "NAMES", "UNetBackbone"]

ATTENTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Projections of attn1 and attn2 in every transformer block."""
LEVELS = 4
"""Maximum number of down blocks and of up blocks."""
LAYERS = 3
"""Numbers per outer block: two layers and a downsampler in a down block, three layers in an up block."""
KINDS = {"resnets": {"time_emb_proj": "emb_layers.1"}, "attentions": None}

NAMES = Names(
    blocks={
        f"{way}_blocks.{block}.{kind}.{layer}": (f"{theirs}_blocks.{LAYERS * block + layer + first}.{i}", inside)
        for way, theirs, first in (("down", "input", 1), ("up", "output", 0))
        for block in range(LEVELS)
        for layer in range(LAYERS)
        for i, (kind, inside) in enumerate(KINDS.items())
    }
    | {
        f"mid_block.{kind}.{i}": (f"middle_block.{place}", KINDS[kind])
        for place, (kind, i) in enumerate((("resnets", 0), ("attentions", 0), ("resnets", 1)))
    },
    outside={
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    },
)


class UNetBackbone(DiffusersBackbone):
    """A `UNet2DConditionModel` that predicts noise or VP v at places of a table of noise levels."""

    @abstractmethod
    def fitting(self, pipeline: Any) -> Mapping[str, Any]:
        """Return the settings that a UNet for text-to-image has with the models beside it, as in its config.json."""

    def check(self, pipeline: Any, directory: Path) -> None:
        """Raise UserError for components that do not match each other, or another kind of UNet."""
        for name, allowed in self.fitting(pipeline).items():
            if (found := pipeline.unet.config[name]) != allowed:
                raise UserError(
                    f"backbone.checkpoint: {directory}/unet/config.json: {name} is {show(found)}; allowed is "
                    f"{show(allowed)} in a UNet for text-to-image with the models beside it"
                )

    def parameterize(self) -> EpsilonPrediction:
        """Return the type of prediction from `prediction_type` of the checkpoint's scheduler."""
        config, kinds = self.pipeline.scheduler.config, {"epsilon": EpsilonPrediction, "v_prediction": VPrediction}
        where, kind = f"backbone.checkpoint: {self.section.checkpoint}/scheduler", config.get("prediction_type")
        if "beta_schedule" not in config or kind not in kinds or config.get("timestep_type") == "continuous":
            raise UserError(
                f"{where}: prediction_type is {show(kind)} of a {type(self.pipeline.scheduler).__name__}; allowed are "
                "epsilon and v_prediction of EulerDiscreteScheduler, DDIMScheduler and others with a table of betas"
            )
        if kind == "epsilon" and config.get("rescale_betas_zero_snr"):
            raise UserError(
                f"{where}: prediction_type is epsilon with rescale_betas_zero_snr; allowed is v_prediction: a "
                "prediction of the noise says nothing where all is noise"
            )
        try:
            return kinds[kind](config)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
