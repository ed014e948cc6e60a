"""Wan 2.1 and 2.2 image-to-video."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from dgpo_wan.i2v.backbone import ImageToVideoBackbone
from dgpo_wan.i2v.options import ImageToVideoOptions
from dgpo_wan.i2v.tiny import make_tiny_i2v
from tests.families.proof import CFG, NEGATIVE, Proof


def image(i: int) -> Image.Image:
    """Other images of other sizes, none of which is that of the sample."""
    gradients = [Image.linear_gradient("L").rotate(90 * (i + turn)) for turn in range(3)]
    return Image.merge("RGB", gradients).resize([(48, 32), (31, 57), (100, 40)][i])


def channels(given: dict[str, Any], *order: str) -> dict[str, Any]:
    """The transformer's channels in another order, or others in their place."""
    x, mask, condition = given["hidden_states"].split((4, 4, 4), 1)
    parts = {"x": x, "mask": mask, "condition": condition, "ones": torch.ones_like(mask), "zeros": 0 * mask}
    return {"hidden_states": torch.cat([parts[name] for name in order], 1)}


def zeros_before_normalizing(given: dict[str, Any]) -> dict[str, Any]:
    """Latents of nothing after the first frame, in place of those of gray frames."""
    changed = given["hidden_states"].clone()
    changed[:, 8:, 1:] = 0
    return {"hidden_states": changed}


CASES = {name: replace(case, image=image) for name, case in {**CFG, "negative": NEGATIVE}.items()}
I2V: dict[str, Any] = {
    "kind": ImageToVideoBackbone,
    "options": ImageToVideoOptions,
    "tolerance": 5e-4,  # as in `wan`
    "quick": {"frames": 5},
}
SHORT: dict[str, Any] = {
    "values": {"frames": 9, "text_length": 24}, "call": {"num_frames": 9, "max_sequence_length": 24},
}  # fmt: skip
PROOFS = {
    "wan-i2v": Proof(
        make=make_tiny_i2v,
        cases=CASES,
        values={"frames": 9},
        call={"num_frames": 9},
        **I2V,
        traps={
            "no image tokens": lambda given: {
                "encoder_hidden_states_image": torch.zeros_like(given["encoder_hidden_states_image"])
            },
            "a mask of ones": lambda given: channels(given, "x", "ones", "condition"),
            "no mask": lambda given: channels(given, "x", "zeros", "condition"),
            "the condition before the mask": lambda given: channels(given, "x", "condition", "mask"),
            "zeros in place of gray frames": zeros_before_normalizing,
        },
    ),
    "wan-i2v, two experts": Proof(
        make=lambda directory: make_tiny_i2v(directory, model="2.2-A14B", boundary=0.8, layers=1),
        cases={"cfg": CASES["cfg"]},
        **I2V,
        **SHORT | {"values": SHORT["values"] | {"expert": "low"}},
        load={"load_into_transformer_2": True},
    ),
    "wan-i2v, first frame": Proof(
        make=lambda directory: make_tiny_i2v(directory, model="2.2-5B"),
        cases={"cfg": CASES["cfg"]},
        **I2V,
        **SHORT,
        traps={
            "one time for all frames": lambda given: {"timestep": given["timestep"][:, -1]},
            "noise in the first frame": lambda given: {
                "hidden_states": torch.cat([given["hidden_states"][:, :, 1:2], given["hidden_states"][:, :, 1:]], 2)
            },
        },
    ),
}
