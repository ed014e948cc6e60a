"""The work that every side of a comparison does: a model, prompts, groups, solver steps and training times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ADAPTED", "ALPHA", "RANK", "WORKS", "Work", "make_checkpoint"]

RANK, ALPHA = 64, 128
ADAPTED = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
"""The published adapter: its rank and alpha, and the layers that it adapts. The authors' script states no others."""
CLIP_TOKENS = 77
"""The authors' script reads so many tokens with the CLIP encoders, whatever the checkpoint says."""


@dataclass(frozen=True)
class Work:
    """An iteration, and the model that does it. layers, width: of the transformer; pixels: side of the images;
    group_size: of each of `groups` groups, one to a micro-batch; steps: of the solver, with guidance; times: training
    times of each sample; text_tokens: of T5, behind `clip_tokens` of CLIP; repeats: turns for every one that is asked
    for, more where an iteration is short."""

    name: str
    layers: int
    width: int
    pixels: int
    groups: int
    group_size: int
    text_tokens: int
    repeats: int = 1
    steps: int = 10
    times: int = 4
    guidance: float = 4.5
    shift: float = 3.0
    clip_tokens: int = CLIP_TOKENS

    @property
    def prompts(self) -> Sequence[str]:
        """64 different prompts, of which an iteration draws `groups`."""
        return [f"image {i}" for i in range(64)]


WORKS = {
    work.name: work
    for work in (
        Work("compute-bound", layers=4, width=256, pixels=96, groups=2, group_size=6, text_tokens=32),
        Work("overhead-bound", layers=6, width=16, pixels=32, groups=4, group_size=4, text_tokens=8, repeats=3),
    )
}


def make_checkpoint(work: Work, directory: Path) -> Path:
    """Write the work's checkpoint: SD3's architecture with random weights, complete with three text encoders."""
    from dgpo_sd3.testing import make_tiny_checkpoint

    return make_tiny_checkpoint(
        directory,
        layers=work.layers,
        width=work.width,
        pos_embed_max_size=max(8, work.pixels // 8),
        t5=True,
        clip_tokens=work.clip_tokens,
        shift=work.shift,
    )
