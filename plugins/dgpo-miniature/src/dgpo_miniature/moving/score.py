"""The motion score of a checkpoint: Euler samples judged by the reward's strict score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.types import Prompt
from dgpo_miniature.moving.detector import Seen, find_motion
from dgpo_miniature.moving.text import TOKENS
from dgpo_miniature.moving.world import FRAMES, SIZE

if TYPE_CHECKING:
    from diffusers import WanPipeline

__all__ = ["sample", "score"]


def sample(
    pipeline: WanPipeline, texts: Sequence[str], *, steps: int = 8, guidance: float = 1.0, seed: int = 0
) -> Tensor:
    """Sample videos [B, F, 3, 32, 32] in [0, 1] with the pipeline; guidance 1 disables guidance."""
    pipeline.set_progress_bar_config(disable=True)
    videos: Tensor = pipeline(
        list(texts),
        height=SIZE,
        width=SIZE,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).frames
    return videos


def score(pipeline: WanPipeline, prompts: Sequence[Prompt], *, guidance: float = 1.0) -> dict[str, float]:
    """Return the fractions of clips, one per prompt, with correct shape, color, direction, and all three ("strict")."""
    seen: list[Seen] = []
    for start in range(0, len(prompts), 48):
        texts = [prompt.text for prompt in prompts[start : start + 48]]
        seen += [find_motion(video.numpy()) for video in sample(pipeline, texts, guidance=guidance, seed=start)]
    count: Counter[str] = Counter()
    for detected, prompt in zip(seen, prompts, strict=True):
        met = [key for key in ("shape", "color", "direction") if getattr(detected, key) == prompt.metadata[key]]
        count.update(met)
        count["strict"] += len(met) == 3
    return {key: count[key] / len(prompts) for key in ("shape", "color", "direction", "strict")}
