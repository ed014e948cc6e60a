"""FLUX.1."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxPipeline

from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_diffusers.families.flux.tiny import make_tiny_flux
from tests.families.proof import Case, Proof

FLUX: dict[str, Any] = {
    "kind": FluxBackbone,
    "options": FluxOptions,
    "packed": lambda latents: FluxPipeline._pack_latents(latents, *latents.shape),
    "unpacked": lambda tokens, shape: FluxPipeline._unpack_latents(tokens, *shape[1:], vae_scale_factor=1),
    "quick": {"text_length": 16},
}
TRUE = {"true_cfg_scale": 3.0}

PROOFS = {
    "flux": Proof(
        make=make_tiny_flux,
        values={},
        call={},
        cases={
            "plain": Case(),
            "embedded": Case(pipeline={"guidance_scale": 1.5}, options={"embedded_guidance": 1.5}),
            "empty": Case(pipeline=TRUE | {"negative_prompt": ""}, guidance=3.0),
            "negative": Case(pipeline=TRUE | {"negative_prompt": "blur"}, guidance=3.0, negative="blur"),
        },
        traps={
            "fewer text tokens": lambda given: {
                "encoder_hidden_states": given["encoder_hidden_states"][:, :256],
                "txt_ids": given["txt_ids"][:256],
            },
            "a guidance of 3500": lambda given: {"guidance": 1000 * given["guidance"]},
            "times up to 1000": lambda given: {"timestep": 1000 * given["timestep"]},
            "rows as columns": lambda given: {"img_ids": given["img_ids"][:, [0, 2, 1]]},
            "text has places too": lambda given: {"txt_ids": torch.arange(512.0)[:, None].expand(-1, 3)},
            "channels inside": lambda given: {
                "hidden_states": given["hidden_states"].unflatten(2, (-1, 4)).transpose(2, 3).flatten(2)
            },
        },
        **FLUX,
    ),
    "flux, schnell": Proof(
        make=lambda directory: make_tiny_flux(directory, schnell=True),
        values={},
        call={"max_sequence_length": 256},
        cases={
            "plain": Case(pipeline={"guidance_scale": 0.0}),
            "negative": Case(pipeline=TRUE | {"negative_prompt": "blur"}, guidance=3.0, negative="blur"),
        },
        **FLUX,
    ),
}
