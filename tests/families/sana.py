"""SANA."""

from __future__ import annotations

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dgpo_diffusers.families.sana.backbone import SanaBackbone
from dgpo_diffusers.families.sana.tiny import make_tiny_sana
from dgpo_diffusers.options import DiffusersOptions
from tests.families.proof import CFG, NEGATIVE, Proof

PROOFS = {
    "sana": Proof(
        kind=SanaBackbone,
        options=DiffusersOptions,
        make=make_tiny_sana,
        values={},
        call={"use_resolution_binning": False},
        cases=CFG | {"negative": NEGATIVE},
        sizes=((32, 64), (96, 32)),  # the pipeline draws multiples of 32 only, whatever its autoencoder's factor
        # Its own truncates times to integers.
        scheduler=lambda scheduler: FlowMatchEulerDiscreteScheduler(shift=scheduler.config.flow_shift),
        traps={
            "padding is attended to": lambda given: {
                "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])
            },
            "times without their scale": lambda given: {"timestep": given["timestep"] / 0.7},
            "times up to 1": lambda given: {"timestep": given["timestep"] / 1000},
        },
    ),
}
