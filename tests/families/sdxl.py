"""Stable Diffusion XL."""

from __future__ import annotations

from dgpo_diffusers.families.sdxl.backbone import SDXLBackbone
from dgpo_diffusers.families.sdxl.tiny import make_tiny_sdxl
from dgpo_diffusers.options import DiffusersOptions
from tests.families.proof import CFG, EMPTY, NEGATIVE, Proof

PROOFS = {
    "sdxl": Proof(
        kind=SDXLBackbone,
        options=DiffusersOptions,
        make=make_tiny_sdxl,
        values={},
        call={},
        cases=CFG | {"negative": NEGATIVE, "empty": EMPTY},
        sigmas=lambda scheduler: scheduler.sigmas / (1 + scheduler.sigmas),
        tolerance=1e-4,  # latents of about 12, of which the autoencoder sees what is left after its norms
    ),
}
