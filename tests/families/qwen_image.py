"""Qwen-Image."""

from __future__ import annotations

from diffusers import QwenImagePipeline

from dgpo_diffusers.families.qwen_image.backbone import QwenImageBackbone
from dgpo_diffusers.families.qwen_image.options import QwenImageOptions
from dgpo_diffusers.families.qwen_image.tiny import make_tiny_qwen_image
from tests.families.proof import Case, Proof

TRUE = {"true_cfg_scale": 3.0}

PROOFS = {
    "qwen-image": Proof(
        kind=QwenImageBackbone,
        options=QwenImageOptions,
        make=make_tiny_qwen_image,
        values={},
        call={},
        packed=lambda latents: QwenImagePipeline._pack_latents(latents, *latents.shape),
        unpacked=lambda tokens, shape: QwenImagePipeline._unpack_latents(tokens, *shape[1:], vae_scale_factor=1)[
            :, :, 0
        ],
        cases={
            "plain": Case(),
            "cfg": Case(pipeline=TRUE | {"negative_prompt": " "}, guidance=3.0),
            "empty": Case(pipeline=TRUE | {"negative_prompt": ""}, guidance=3.0, negative=""),
            "negative": Case(pipeline=TRUE | {"negative_prompt": "blur"}, guidance=3.0, negative="blur"),
        },
        traps={
            "times up to 1000": lambda given: {"timestep": 1000 * given["timestep"]},
            "channels inside": lambda given: {
                "hidden_states": given["hidden_states"].unflatten(2, (-1, 4)).transpose(2, 3).flatten(2)
            },
            "rows as columns": lambda given: {
                "img_shapes": [[(f, w, h) for f, h, w in s] for s in given["img_shapes"]]
            },
            "places that count pixels": lambda given: {
                "img_shapes": [[(f, h // 2, 2 * w) for f, h, w in s] for s in given["img_shapes"]]
            },
            "the template's end cut off": lambda given: {
                "encoder_hidden_states": given["encoder_hidden_states"][:, :-5]
            },
        },
    ),
}
