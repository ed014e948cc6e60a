"""The reward `motion`: the amount of motion in a video, without labels.

A model trained with rewards on single frames may learn to generate static videos, which are easy to get right. As a
monitor next to such a reward, `motion` then decreases.

With Y_f the luma (ITU-R BT.601, in [0, 1]) of frame f, |grad Y| the length of its forward differences to the right and
to the lower neighbor (0 at the last row and column), and sums over the P pixels of a frame:

    change_f = sum |Y_(f+1) - Y_f|
    edges_f  = sum (|grad Y_f| + |grad Y_(f+1)|) / 2
    motion   = mean over f of  change_f / (edges_f + P / 255)

This is the normal flow |dY/dt| / |grad Y|, averaged with the edge strengths as weights. If the image shifts by less
than the width of its structures, it is the speed in pixels per frame times the fraction perpendicular to the edges: 1
for stripes that move across themselves, 2 / pi = 0.64 for a disc. Contrast cancels out. Static edges count as 0, so the
value describes the whole image. Faster motion and cuts saturate; flicker counts as motion. The term P / 255 (one gray
level per pixel) keeps empty images at 0 and the value below 255.

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
    """Return the motion of videos in pixels per frame, float32 [B] in [0, 255].

    videos: [B, F, 3, H, W], float in [0, 1], with F at least 2.
    """
    luma = (videos.float() * videos.new_tensor(LUMA, dtype=torch.float32).view(3, 1, 1)).sum(2)
    right, down = torch.zeros_like(luma), torch.zeros_like(luma)
    right[..., :-1] = luma.diff(dim=-1)
    down[..., :-1, :] = luma.diff(dim=-2)
    edges = torch.hypot(right, down).sum((-1, -2))
    change = luma.diff(dim=1).abs().sum((-1, -2))
    pixels = luma.shape[-1] * luma.shape[-2]
    return (change / ((edges[:, 1:] + edges[:, :-1]) / 2 + pixels * GRAY_LEVEL)).mean(1)


class Motion(RewardModel):
    """Motion in pixels per frame, or motion / `enough` clipped to [0, 1]. A video of one frame is missing."""

    media = frozenset({"video"})
    range = (0.0, 255.0)
    options: MotionOptions

    def __init__(self, options: MotionOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        if options.enough is not None:
            self.range = (0.0, 1.0)  # type: ignore[misc]

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score videos [B, F, 3, H, W], float in [0, 1]; returns values float32 [B] on the device of the videos.

        A video with non-finite pixels is missing. Diagnostics: `motion`, in pixels per frame, or the `reason`.
        """
        if media.shape[1] < 2:
            reason = {"reason": "the video has only one frame"}
            return Scores(torch.zeros(len(media)), torch.ones(len(media), dtype=torch.bool), (reason,) * len(media))
        # One video at a time: limits memory, and the sums of a video do not depend on the batch size.
        values = torch.stack([motion(video[None])[0] for video in media]) if len(media) else torch.zeros(0)
        missing = ~values.isfinite()
        diagnostics = tuple(
            {"reason": "the video has non-finite pixels"} if is_missing else {"motion": round(value, 4)}
            for value, is_missing in zip(values.tolist(), missing.tolist(), strict=True)
        )
        values = values.masked_fill(missing, 0.0)
        if self.options.enough is not None:
            values = (values / self.options.enough).clamp(max=1.0)
        return Scores(values, missing, diagnostics)

    def examples(self) -> Sequence[Example]:
        """Return a gray square that moves by one pixel per frame (good) and a static one (bad), [5, 3, 24, 24]."""
        examples = []
        for name, step in (("a moving square", 1), ("a static square", 0)):
            video = torch.full((5, 3, 24, 24), 0.9)
            for frame in range(5):
                left = 4 + step * frame
                video[frame, :, 8:16, left : left + 8] = 0.3
            examples.append(Example(name, Prompt("a square that moves"), video, good=step > 0))
        return examples
