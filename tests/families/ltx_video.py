"""LTX-Video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgpo_diffusers.families.ltx_video.backbone import LTXVideoBackbone
from dgpo_diffusers.families.ltx_video.decoding import SEED
from dgpo_diffusers.families.ltx_video.options import LTXVideoOptions
from dgpo_diffusers.families.ltx_video.tiny import make_tiny_ltx_video
from tests.families.proof import CFG, NEGATIVE, Proof


def unpacked(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tokens.transpose(1, 2).reshape(-1, *shape)


def decoding(pipeline: Any, count: int) -> list[torch.Generator]:
    """Noise of decoding, the same in every row, as the backbone has it; a decoder draws some of its own as well."""
    torch.default_generator.manual_seed(SEED)
    return [torch.Generator().manual_seed(SEED) for _ in range(count)]


LTX: dict[str, Any] = {
    "kind": LTXVideoBackbone,
    "options": LTXVideoOptions,
    "values": {"frames": 17, "fps": 24.0, "text_length": 32},
    "call": {"num_frames": 17, "frame_rate": 24, "max_sequence_length": 32},
    "packed": lambda latents: latents.flatten(2).transpose(1, 2),
    "unpacked": unpacked,
    "sizes": ((64, 96), (128, 64)),
    "impossible": (64, 80),
    "rollout": {"resolution": 64},
    "tolerance": 5e-4,  # sums of convolutions depend on batch and processor
}
PROOFS = {
    "ltx-video": Proof(
        make=make_tiny_ltx_video,
        cases=CFG | {"negative": NEGATIVE},
        traps={
            "times up to 1": lambda given: {"timestep": given["timestep"] / 1000},
            "text without its mask": lambda given: {
                "encoder_attention_mask": torch.ones_like(given["encoder_attention_mask"])
            },
            "another rate": lambda given: {
                "rope_interpolation_scale": (8 / 30, *given["rope_interpolation_scale"][1:])
            },
            "positions of latents": lambda given: {"rope_interpolation_scale": None},
            "rows as columns": lambda given: {"height": given["width"], "width": given["height"]},
        },
        **LTX,
    ),
    "ltx-video, denoising": Proof(
        make=lambda directory: make_tiny_ltx_video(directory, denoising=True),
        cases={"cfg": CFG["cfg"]},
        **LTX | {"call": {**LTX["call"], "generator": decoding, "decode_timestep": 0.05, "decode_noise_scale": 0.025}},
    ),
}
