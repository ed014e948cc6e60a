"""A reward for any medium, and prompts of different lengths."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dgpo_core.contracts import PromptSource, RewardModel
from dgpo_core.types import Prompt, Scores

__all__ = ["Brightness", "Things"]

THINGS = ("an owl", "a teapot", "a bicycle in the snow", "a fox", "two boats, at sea", "a violin", "a bee", "a cactus")


class Brightness(RewardModel):
    """Mean brightness, a color more than the others for prompts of an even number of letters."""

    media = frozenset({"image", "video"})
    range = (0.0, 1.0)
    group_by = "kind"

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """[B, 3, H, W] or [B, F, 3, H, W] in [0, 1] to values [B] in [0, 1]."""
        channels = media.float().flatten(-2).mean(-1)
        channels = channels.mean(1) if channels.ndim == 3 else channels
        red = torch.tensor([0.8 if len(p.text) % 2 else 0.2 for p in prompts], device=media.device)
        values = red * channels[:, 0] + (1 - red) * channels[:, 1:].mean(1)
        return Scores(values.clamp(0, 1), missing=torch.zeros_like(values, dtype=torch.bool))


class Things(PromptSource):
    """Three of four to train on."""

    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        """With a kind, by which evaluations are split."""
        chosen = [thing for i, thing in enumerate(THINGS) if (i % 4 == 3) == (split == "heldout")]
        return [Prompt(f"a photo of {t}", {"kind": "long" if " " in t[2:] else "short"}) for t in chosen]
