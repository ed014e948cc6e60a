"""Stable Diffusion 3."""

from __future__ import annotations

from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.options import SD3Options
from dgpo_sd3.testing import make_tiny_checkpoint as make_tiny_sd3
from tests.families.proof import CFG, NEGATIVE, Proof

PROOFS = {
    "sd3": Proof(
        kind=SD3Backbone,
        options=SD3Options,
        make=lambda directory: make_tiny_sd3(directory, t5=True),
        values={"text_length": 16},
        call={"max_sequence_length": 16},
        cases=CFG | {"negative": NEGATIVE},
    ),
}
