"""Stable Diffusion 1.5 and 2.1."""

from __future__ import annotations

from typing import Any

from diffusers import EulerDiscreteScheduler

from dgpo_diffusers.families.sd.backbone import SDBackbone
from dgpo_diffusers.families.sd.tiny import make_tiny_sd
from dgpo_diffusers.options import DiffusersOptions
from tests.families.proof import CFG, EMPTY, NEGATIVE, Proof


def euler(scheduler: Any) -> Any:
    """EulerDiscreteScheduler with the settings of a published one, whose `timestep_spacing` is its class's default, and
    which `from_config` would replace by another."""
    return EulerDiscreteScheduler.from_config(scheduler.config, timestep_spacing=scheduler.config.timestep_spacing)


SD: dict[str, Any] = {
    "kind": SDBackbone,
    "options": DiffusersOptions,
    "values": {},
    "call": {},
    "cases": CFG | {"negative": NEGATIVE, "empty": EMPTY},
    "scheduler": euler,
    "sigmas": lambda scheduler: scheduler.sigmas / (1 + scheduler.sigmas),
    # Odd numbers of latents, which the UNet halves and doubles again.
    "sizes": ((40, 48), (64, 24)),
    "impossible": (40, 44),
    "tolerance": 1e-4,  # latents of about 12, of which the autoencoder sees what is left after its norms
}
PROOFS = {
    "sd": Proof(
        make=make_tiny_sd,
        traps={
            "times up to 1": lambda given: {"timestep": given["timestep"] / 1000},
            "latents of flow coordinates": lambda given: {"sample": 0.8 * given["sample"]},
            "fewer text tokens": lambda given: {"encoder_hidden_states": given["encoder_hidden_states"][:, :-8]},
        },
        **SD,
    ),
    "sd, v prediction": Proof(
        make=lambda directory: make_tiny_sd(directory, second=True),
        **SD,
    ),
}
