"""Z-Image."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import pad

from dgpo_diffusers.families.z_image.backbone import ZImageBackbone
from dgpo_diffusers.families.z_image.options import ZImageOptions
from dgpo_diffusers.families.z_image.tiny import make_tiny_z_image
from tests.families.proof import Case, Proof

Z_IMAGE: dict[str, Any] = {"kind": ZImageBackbone, "options": ZImageOptions, "values": {}, "call": {}}

PROOFS = {
    "z-image": Proof(
        make=make_tiny_z_image,
        cases={
            "plain": Case(pipeline={"guidance_scale": 0.0}),
            "cfg": Case(pipeline={"guidance_scale": 3.5}, guidance=4.5),
            "normalized": Case(
                pipeline={"guidance_scale": 3.5, "cfg_normalization": True},
                guidance=4.5,
                options={"cfg_normalization": 1.0},
            ),
            "limit not reached": Case(
                pipeline={"guidance_scale": 1.0, "cfg_normalization": 1.2},
                guidance=2.0,
                options={"cfg_normalization": 1.2},
            ),
            "negative": Case(
                pipeline={"guidance_scale": 2.0, "negative_prompt": "blur"}, guidance=3.0, negative="blur"
            ),
        },
        traps={
            "sigma as time": lambda given: {"t": 1 - given["t"]},
            "times up to 1000": lambda given: {"t": 1000 * given["t"]},
            "captions padded with zeros": lambda given: {
                "cap_feats": [pad(caption, (0, 0, 0, -len(caption) % 32)) for caption in given["cap_feats"]]
            },
            "captions padded beyond their own length": lambda given: {
                "cap_feats": [pad(caption, (0, 0, 0, 64)) for caption in given["cap_feats"]]
            },
        },
        **Z_IMAGE,
    ),
    "z-image, turbo": Proof(
        make=lambda directory: make_tiny_z_image(directory, turbo=True),
        cases={"plain": Case(pipeline={"guidance_scale": 0.0})},
        **Z_IMAGE,
    ),
}
