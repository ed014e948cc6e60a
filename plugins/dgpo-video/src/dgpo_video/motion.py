"""The reward `motion`: how much moves in a video, without labels.

Trained on what single frames show, a model may learn to stand still: a still video is an easy one. Beside such a reward
this one is a monitor that falls.

With Y_f the luma (ITU-R BT.601, in [0, 1]) of frame f, |grad Y| the length of its forward differences to the right and
to the lower neighbor (0 at the last row and column), and sums over the P pixels of a frame:

    change_f = sum |Y_(f+1) - Y_f|
    edges_f  = sum (|grad Y_f| + |grad Y_(f+1)|) / 2
    motion   = mean over f of  change_f / (edges_f + P / 255)

This is the normal flow |dY/dt| / |grad Y|, averaged with the edges as weights. For an image that shifts by less than
the width of its structures it is the speed in pixels a frame, times the share of it that is across the edges: 1 for
stripes that move across themselves, 2 / pi = 0.64 for a disc. Contrast cancels. Edges that stand still count with 0, so
the value is that of the whole image; faster motion and cuts saturate; flicker counts as motion. P / 255, one gray
level a pixel, keeps empty images at 0 and the value below 255.

Shape letters: B videos, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Example, Prompt, Scores
from dgpo_video.options import MotionOptions

__all__ = ["Motion", "motion"]

LUMA = (0.299, 0.587, 0.114)
GRAY_LEVEL = 1 / 255


def motion(videos: Tensor) -> Tensor:
    """Motion of videos [B, F, 3, H, W], float in [0, 1], F at least 2: float32 [B] in [0, 255], pixels a frame."""
    luma = (videos.float() * videos.new_tensor(LUMA, dtype=torch.float32).view(3, 1, 1)).sum(2)
    right, down = torch.zeros_like(luma), torch.zeros_like(luma)
    right[..., :-1] = luma.diff(dim=-1)
    down[..., :-1, :] = luma.diff(dim=-2)
    edges = torch.hypot(right, down).sum((-1, -2))
    change = luma.diff(dim=1).abs().sum((-1, -2))
    pixels = luma.shape[-1] * luma.shape[-2]
    return (change / ((edges[:, 1:] + edges[:, :-1]) / 2 + pixels * GRAY_LEVEL)).mean(1)


class Motion(RewardModel):
    """Motion in pixels a frame, or with `enough` the share of it that is reached. A video of one frame is missing."""

    media = frozenset({"video"})
    range = (0.0, 255.0)
    options: MotionOptions

    def __init__(self, options: MotionOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        if options.enough is not None:
            self.range = (0.0, 1.0)  # type: ignore[misc]

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Videos [B, F, 3, H, W], float in [0, 1], to values float32 [B] on their device; not finite: missing.

        Diagnostics: `motion`, in pixels a frame.
        """
        if media.shape[1] < 2:
            reason = {"reason": "a video of one frame cannot move"}
            return Scores(torch.zeros(len(media)), torch.ones(len(media), dtype=torch.bool), (reason,) * len(media))
        # One at a time: the sums of a video must not depend on how many others there are, nor fill the memory.
        values = torch.stack([motion(one[None])[0] for one in media]) if len(media) else torch.zeros(0)
        missing = ~values.isfinite()
        said = tuple(
            {"reason": "the video has pixels that are not finite"} if unknown else {"motion": round(value, 4)}
            for value, unknown in zip(values.tolist(), missing.tolist(), strict=True)
        )
        values = values.masked_fill(missing, 0.0)
        if self.options.enough is not None:
            values = (values / self.options.enough).clamp(max=1.0)
        return Scores(values, missing, said)

    def examples(self) -> Sequence[Example]:
        """A gray square that moves by a pixel a frame (good) and one that stands still (bad); [5, 3, 24, 24]."""
        found = []
        for name, step in (("a square that moves", 1), ("a square that stands still", 0)):
            video = torch.full((5, 3, 24, 24), 0.9)
            for frame in range(5):
                left = 4 + step * frame
                video[frame, :, 8:16, left : left + 8] = 0.3
            found.append(Example(name, Prompt("a square that moves"), video, good=step > 0))
        return found
