"""Lumina-Image 2.0."""

from __future__ import annotations

from typing import Any

import torch

from dgpo_diffusers.families.lumina2.backbone import Lumina2Backbone
from dgpo_diffusers.families.lumina2.options import Lumina2Options
from dgpo_diffusers.families.lumina2.tiny import make_tiny_lumina2
from tests.families.proof import CFG, NEGATIVE, Case, Proof

LUMINA2: dict[str, Any] = {
    "kind": Lumina2Backbone,
    "options": Lumina2Options,
    "values": {},
    "call": {},
    "quick": {"text_length": 48, "system_prompt": "draw"},
}
PLAIN = {"guidance_scale": 4.5, "cfg_normalization": False}
PROOFS = {
    "lumina2": Proof(
        make=make_tiny_lumina2,
        cases=CFG | {
            "negative": NEGATIVE,
            "not renormalized": Case(pipeline=PLAIN, guidance=4.5, options={"renormalize": False}),
            "another system prompt": Case(
                pipeline={"guidance_scale": 4.5, "system_prompt": "draw"},
                guidance=4.5,
                options={"system_prompt": "draw"},
            ),
        },
        traps={
            "sigma as time": lambda given: {"timestep": 1 - given["timestep"]},
            "times up to 1000": lambda given: {"timestep": 1000 * given["timestep"]},
            "padding without a mask": lambda given: {
                "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])
            },
        },
        **LUMINA2,
    ),
    "lumina2, dynamic shift": Proof(
        make=lambda directory: make_tiny_lumina2(directory, dynamic=True),
        cases={"cfg": CFG["cfg"]},
        **LUMINA2,
    ),
}  # fmt: skip
