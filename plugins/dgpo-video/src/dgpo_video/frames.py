"""The reward `frames`: any image reward on frames of a video.

Shape letters: B videos, F frames, K frames that are shown to the image reward, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Example, Prompt, Scores
from dgpo_video.options import FramesOptions

__all__ = ["Frames", "chosen_frames"]


def chosen_frames(which: str | int, count: int) -> list[int]:
    """Indices of the frames that are shown, of `count`: first, middle, last, all, or every n-th from the first.

    The middle of an even number of frames is the earlier one of the two.
    """
    if isinstance(which, int):
        return list(range(0, count, which))
    places = {"first": [0], "middle": [(count - 1) // 2], "last": [count - 1], "all": list(range(count))}
    return places[which]


class Frames(RewardModel):
    """Shows the image reward `options.reward` single frames and takes the mean or the minimum of their values.

    Range, grouping and concurrency are those of the image reward; each of its calls holds B * K images. A video is
    missing if one of its frames is.
    """

    media = frozenset({"video"})
    options: FramesOptions

    def __init__(self, options: FramesOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        inner = get_registry().create("reward", options.reward, device=device)
        if "image" not in inner.media:
            inner.close()
            raise UserError(f"frames: the reward {options.reward.use} takes no images, so it cannot be shown frames")
        if not isinstance(inner, RewardModel):
            inner.close()
            raise UserError(
                f"frames: the reward {options.reward.use} compares the samples of a prompt, so it cannot be shown "
                "frames; choose one that scores each image by itself"
            )
        self.inner: RewardModel = inner
        self.range = inner.range  # type: ignore[misc]
        self.group_by = inner.group_by  # type: ignore[misc]
        self.concurrency = inner.concurrency

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """What the image reward demands of them."""
        self.inner.check_prompts(prompts)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Videos [B, F, 3, H, W], float in [0, 1], to values float32 [B] on the CPU.

        Diagnostics: `frames`, what the image reward says of each with its `frame` and `value`; its `marks`, with their
        frame; its `clauses`, if there is one frame; the first `reason` why a frame could not be scored.
        """
        if not len(media):
            return Scores(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        chosen = chosen_frames(self.options.frames, media.shape[1])
        count = len(chosen)
        shown = self.inner.score(media[:, chosen].flatten(0, 1), [p for p in prompts for _ in chosen])
        values = shown.values.detach().float().cpu().view(-1, count)
        missing = shown.missing.cpu().view(-1, count)
        total = values.amin(1) if self.options.aggregate == "min" else values.mean(1)
        none = missing.any(1)
        said = list(shown.diagnostics) or [{}] * values.numel()
        diagnostics = tuple(
            _diagnosis(chosen, values[i].tolist(), missing[i].tolist(), said[i * count : (i + 1) * count])
            for i in range(len(media))
        )
        return Scores(total.masked_fill(none, 0.0), none, diagnostics)

    def examples(self) -> Sequence[Example]:
        """The image reward's, as videos that stand still: [3, 3, H, W]."""
        return [
            Example(one.name, one.prompt, one.media.expand(3, -1, -1, -1).clone(), good=one.good)
            for one in self.inner.examples()
            if one.media.dim() == 3
        ]

    def close(self) -> None:
        """Close the image reward."""
        self.inner.close()


def _diagnosis(
    chosen: Sequence[int], values: Sequence[float], missing: Sequence[bool], said: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    frames, marks = [], []
    for frame, value, unknown, words in zip(chosen, values, missing, said, strict=True):
        frames.append({"frame": frame, "value": None if unknown else value, **words})
        marks += [{**mark, "frame": frame} for mark in words.get("marks") or ()]
    found: dict[str, Any] = {"frames": frames}
    if marks:
        found["marks"] = marks
    if len(said) == 1 and said[0].get("clauses"):
        found["clauses"] = said[0]["clauses"]
    reason = next((words["reason"] for words in said if words.get("reason")), None)
    return found | ({"reason": reason} if reason else {})
