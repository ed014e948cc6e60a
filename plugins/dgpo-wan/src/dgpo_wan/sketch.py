"""Wan without its weights: what its configuration files say, on torch's meta device, for `dgpo plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from dgpo_core.errors import UserError
from dgpo_core.types import Conditioning, Prompt
from dgpo_core.weights import read_json, resolve_checkpoint, where_instead
from dgpo_schemas.text import error_text
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.libraries import WanPipeline, quiet

if TYPE_CHECKING:
    from dgpo_schemas.run import BackboneSection
    from dgpo_wan.options import WanOptions

__all__ = ["WanSketch"]


class WanSketch(WanBackbone):
    """The backbone's shapes, types and operations; nothing it computes has values. On another device than meta its
    weights are random and its prompts zeros, as SD3Sketch's."""

    def __init__(self, section: BackboneSection, options: WanOptions, *, device: torch.device | None = None) -> None:
        super().__init__(section, options, device=torch.device("meta") if device is None else device)

    def _load(self, section: BackboneSection, options: WanOptions) -> Any:
        configs = _configurations(section.checkpoint)
        try:
            return self._made_of(configs, section, options)
        except Exception as error:  # the libraries raise what they like for a value that they do not expect
            said = error_text(error, 300).replace("\n", " ")
            raise UserError(
                f"backbone.checkpoint: no model can be made of the config.json files of {section.checkpoint}: {said}"
            ) from error

    def _made_of(self, configs: dict[str, dict[str, Any]], section: BackboneSection, options: WanOptions) -> Any:
        dtype = getattr(torch, section.dtype)
        with self.device, quiet():
            transformer = WanTransformer3DModel.from_config(configs["transformer"])
            other = configs.get("transformer_2")
            return WanPipeline(
                transformer=transformer.to(torch.float32 if section.train == "full" else dtype),
                transformer_2=None if other is None else WanTransformer3DModel.from_config(other).to(dtype),
                vae=AutoencoderKLWan.from_config(configs["vae"]),
                text_encoder=transformers.UMT5EncoderModel(transformers.UMT5Config(**configs["text_encoder"])).to(
                    dtype
                ),
                scheduler=FlowMatchEulerDiscreteScheduler(shift=_shift(section.checkpoint)),
                tokenizer=None,
                boundary_ratio=0.875 if other is not None else None,
            )

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Rows of the shape that prompts have; without values, on the device of the module."""
        shape = (len(prompts), self.options.text_length, self._transformer.config.text_dim)
        device = next(self._transformer.parameters()).device
        return Conditioning({"prompt_embeds": torch.zeros(shape, dtype=self._dtype, device=device)})


def _shift(checkpoint: str) -> float:
    """Of a directory's scheduler; of the published models, 3."""
    path = Path(resolve_checkpoint(checkpoint)) / "scheduler" / "scheduler_config.json"
    found = read_json(path, "backbone.checkpoint") if path.is_file() else {}
    return float(found.get("flow_shift", found.get("shift", 3.0)))


def _configurations(checkpoint: str) -> dict[str, dict[str, Any]]:
    """Part to configuration: those of a directory, or of a published model that this plugin knows by name."""
    known = json.loads(files("dgpo_wan").joinpath("architectures.json").read_text(encoding="utf-8"))
    shared = {name: known.pop(name) for name in ("text_encoder", "vae")}
    directory = Path(resolve_checkpoint(checkpoint))
    if directory.is_dir():
        found = {
            path.parent.name: read_json(path, "backbone.checkpoint") for path in sorted(directory.glob("*/config.json"))
        }
        missing = [name for name in ("transformer", "vae", "text_encoder") if name not in found]
        if missing:
            instead = where_instead(directory, "model_index.json")
            raise UserError(f"backbone.checkpoint: {directory}/{missing[0]} has no config.json{instead}")
        return found
    if checkpoint not in known:
        raise UserError(
            f"backbone.checkpoint: {checkpoint} is no directory here, and what it looks like is not known; known are "
            f"{', '.join(known)}"
        )
    return shared | known[checkpoint]
