"""FLUX.2 klein."""

from __future__ import annotations

from typing import Any

import torch

from dgpo_diffusers.families.flux2_klein.backbone import Flux2KleinBackbone
from dgpo_diffusers.families.flux2_klein.options import Flux2KleinOptions
from dgpo_diffusers.families.flux2_klein.tiny import make_tiny_flux2_klein
from tests.families.proof import CFG, Case, Proof

LENGTH = 64
"""Tokens: the chat template has 25, and prompts are read byte by byte."""


def negative(pipeline: Any, count: int) -> Any:
    """The pipeline takes another negative text than "" as its embedding."""
    return pipeline.encode_prompt(["blur"] * count, max_sequence_length=LENGTH)[0]


def before_decoding(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """The pipeline gives back what its autoencoder decodes."""
    found, vae = pipeline._patchify_latents(latents), pipeline.vae
    mean, variance = (t.view(1, -1, 1, 1) for t in (vae.bn.running_mean, vae.bn.running_var))
    normalized: torch.Tensor = (found - mean) / (variance + vae.config.batch_norm_eps).sqrt()
    return normalized


KLEIN: dict[str, Any] = {
    "kind": Flux2KleinBackbone,
    "options": Flux2KleinOptions,
    "values": {"text_length": LENGTH},
    "call": {"max_sequence_length": LENGTH},
    "normalized": before_decoding,
}
PROOFS = {
    "flux2-klein": Proof(
        make=make_tiny_flux2_klein,
        cases=CFG | {
            "negative": Case(
                pipeline={"guidance_scale": 3.0, "negative_prompt_embeds": negative}, guidance=3.0, negative="blur"
            )
        },
        traps={
            "text without padding": lambda given: {
                "encoder_hidden_states": given["encoder_hidden_states"][:, :37],
                "txt_ids": given["txt_ids"][:37],
            },
            "times up to 1000": lambda given: {"timestep": 1000 * given["timestep"]},
            "rows as columns": lambda given: {"img_ids": given["img_ids"][:, [0, 2, 1, 3]]},
            "text without places": lambda given: {"txt_ids": torch.zeros_like(given["txt_ids"])},
            "channels inside": lambda given: {
                "hidden_states": given["hidden_states"].unflatten(2, (-1, 4)).transpose(2, 3).flatten(2)
            },
        },
        **KLEIN,
    ),
    "flux2-klein, distilled": Proof(
        make=lambda directory: make_tiny_flux2_klein(directory, distilled=True),
        cases={"ignored": Case(pipeline={"guidance_scale": 4.0})},
        rollout={"guidance": 1.0},
        **KLEIN,
    ),
}  # fmt: skip
