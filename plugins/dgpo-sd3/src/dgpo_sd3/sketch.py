"""SD3 without its weights: what its configuration files say, on torch's meta device, for `dgpo plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_core.weights import read_json, resolve_checkpoint, where_instead
from dgpo_schemas.text import error_text
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.libraries import StableDiffusion3Pipeline, quiet

if TYPE_CHECKING:
    from dgpo_schemas.run import BackboneSection
    from dgpo_sd3.options import SD3Options

__all__ = ["SD3Sketch"]


class SD3Sketch(SD3Backbone):
    """The backbone's shapes, types and operations; nothing it computes has values.

    On another device than meta its weights are random and its prompts zeros: for measuring what a card can do where no
    weights are to be had.
    """

    def __init__(self, section: BackboneSection, options: SD3Options, *, device: torch.device | None = None) -> None:
        super().__init__(section, options, device=torch.device("meta") if device is None else device)

    def _load(self, section: BackboneSection, options: SD3Options) -> Any:
        configs = _configurations(section.checkpoint)
        try:
            return self._made_of(configs, section, options)
        except Exception as error:  # the libraries raise what they like for a value that they do not expect
            said = error_text(error, 300).replace("\n", " ")
            raise UserError(
                f"backbone.checkpoint: no model can be made of the config.json files of {section.checkpoint}: {said}"
            ) from error

    def _made_of(self, configs: dict[str, dict[str, Any]], section: BackboneSection, options: SD3Options) -> Any:
        self._clip_tokens = configs["text_encoder"].get("max_position_embeddings", 77)
        t5 = options.text_length > 0 and not options.drop_t5 and "text_encoder_3" in configs
        dtype = getattr(torch, section.dtype)
        with self.device, quiet():
            clip = [
                transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**configs[name]))
                for name in ("text_encoder", "text_encoder_2")
            ]
            encoder = transformers.T5EncoderModel(transformers.T5Config(**configs["text_encoder_3"])) if t5 else None
            transformer = SD3Transformer2DModel.from_config(configs["transformer"])
            vae = AutoencoderKL.from_config(configs["vae"])
            return StableDiffusion3Pipeline(
                transformer=transformer.to(torch.float32 if section.train == "full" else dtype),
                vae=vae,
                text_encoder=clip[0].to(dtype),
                text_encoder_2=clip[1].to(dtype),
                text_encoder_3=None if encoder is None else encoder.to(dtype),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=_shift(section.checkpoint)),
                tokenizer=None,
                tokenizer_2=None,
                tokenizer_3=None,
            )

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Rows of the shape that prompts have; without values, on the device of the module."""
        config, device = self._transformer.config, next(self._transformer.parameters()).device
        tokens = self._clip_tokens + self.options.text_length
        shape = (len(prompts), tokens, config.joint_attention_dim)
        return Conditioning(
            {
                "prompt_embeds": torch.zeros(shape, dtype=self._dtype, device=device),
                "pooled": torch.zeros(len(prompts), config.pooled_projection_dim, dtype=self._dtype, device=device),
            }
        )


def _shift(checkpoint: str) -> float:
    """Of a directory's scheduler; of the published models, 3."""
    path = Path(resolve_checkpoint(checkpoint)) / "scheduler" / "scheduler_config.json"
    found = read_json(path, "backbone.checkpoint") if path.is_file() else {}
    return float(found.get("flow_shift", found.get("shift", 3.0)))


def _configurations(checkpoint: str) -> dict[str, dict[str, Any]]:
    """Part to configuration: those of a directory, or of a published model that this plugin knows by name."""
    known = json.loads(files("dgpo_sd3").joinpath("architectures.json").read_text(encoding="utf-8"))
    directory = Path(resolve_checkpoint(checkpoint))
    if directory.is_dir():
        found = {}
        for name in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
            path = directory / name / "config.json"
            if path.is_file():
                found[name] = read_json(path, "backbone.checkpoint")
        missing = [name for name in ("transformer", "vae", "text_encoder", "text_encoder_2") if name not in found]
        if missing:
            instead = where_instead(directory, "model_index.json")
            raise UserError(f"backbone.checkpoint: {directory}/{missing[0]} has no config.json{instead}")
        return found
    published = known["transformer"]
    if checkpoint not in published:
        raise UserError(
            f"backbone.checkpoint: {checkpoint} is no directory here, and what it looks like is not known; known are "
            f"{', '.join(published)}"
        )
    return known | {"transformer": published[checkpoint]}
