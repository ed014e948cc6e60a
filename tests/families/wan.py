"""Wan 2.1 and 2.2."""

from __future__ import annotations

from typing import Any

from dgpo_wan.backbone import WanBackbone
from dgpo_wan.options import WanOptions
from dgpo_wan.testing import make_tiny_checkpoint as make_tiny_wan
from tests.families.proof import CFG, NEGATIVE, Proof

WAN: dict[str, Any] = {
    "kind": WanBackbone,
    "options": WanOptions,
    "values": {"frames": 9, "text_length": 24},
    "call": {"num_frames": 9, "max_sequence_length": 24},
    "tolerance": 5e-4,  # sums of convolutions depend on batch and processor
}
PROOFS = {
    "wan": Proof(make=make_tiny_wan, cases=CFG | {"negative": NEGATIVE}, **WAN),
    "wan, two experts": Proof(
        make=lambda directory: make_tiny_wan(directory, boundary=0.8),
        cases={"cfg": CFG["cfg"]},
        **WAN | {"values": WAN["values"] | {"expert": "low"}},
        load={"load_into_transformer_2": True},
    ),
    "wan, time per patch": Proof(
        make=lambda directory: make_tiny_wan(directory, expand_timesteps=True), cases={"cfg": CFG["cfg"]}, **WAN
    ),
}
