"""Qwen-Image 2.1."""

from __future__ import annotations

from torch import Tensor

from dgpo_diffusers.families.qwen_image_2_1.backbone import QwenImage21Backbone
from dgpo_diffusers.families.qwen_image_2_1.options import QwenImage21Options
from dgpo_diffusers.families.qwen_image_2_1.tiny import make_tiny_qwen_image_2_1
from tests.families.proof import Case, Proof

TRUE = {"true_cfg_scale": 3.0}


def over_white(images: Tensor) -> Tensor:
    """RGBA [B, 4, H, W] in [0, 1] to RGB."""
    return images[:, :3] * images[:, 3:] + 1 - images[:, 3:]


PROOFS = {
    "qwen-image-2.1": Proof(
        kind=QwenImage21Backbone,
        options=QwenImage21Options,
        make=make_tiny_qwen_image_2_1,
        values={},
        call={},
        single=True,
        packed=lambda latents: latents.flatten(2).transpose(1, 2),
        unpacked=lambda tokens, shape: tokens.transpose(1, 2).reshape(-1, *shape),
        seen=over_white,
        sizes=((64, 96), (96, 32)),
        impossible=(64, 48),
        cases={
            "plain": Case(),
            "cfg": Case(pipeline=TRUE | {"negative_prompt": ""}, guidance=3.0),
            "negative": Case(pipeline=TRUE | {"negative_prompt": "blur"}, guidance=3.0, negative="blur"),
        },
        rollout={"resolution": 32},
        traps={
            "times up to 1000": lambda given: {"timestep": 1000 * given["timestep"]},
            "rows as columns": lambda given: {
                "img_shapes": [[(f, w, h) for f, h, w in s] for s in given["img_shapes"]]
            },
            "the template's start cut off": lambda given: {
                "encoder_hidden_states": given["encoder_hidden_states"][:, 3:],
                "img_mask": given["img_mask"][:, 3:],
            },
            "the template's end cut off": lambda given: {
                "encoder_hidden_states": given["encoder_hidden_states"][:, :-5],
                "img_mask": given["img_mask"][:, 5:],
            },
            "the image before the text": lambda given: {"img_mask": given["img_mask"].flip(1)},
        },
    ),
}
