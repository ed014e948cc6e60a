"""The reward `frames`: applies an image reward to frames of a video.

Shape letters: B videos, F frames, K selected frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
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
    """Return the indices of the selected frames.

    which: "first", "middle" (the earlier of two middle frames), "last", "all", or an integer n for every n-th frame,
    starting at the first. count: number of frames of the video.
    """
    if isinstance(which, int):
        return list(range(0, count, which))
    indices = {"first": [0], "middle": [(count - 1) // 2], "last": [count - 1], "all": list(range(count))}
    return indices[which]


class Frames(RewardModel):
    """Scores selected frames with the image reward `options.reward` and returns the mean or minimum of their values.

    Range, grouping and concurrency are those of the image reward; each call to it contains B * K images. A video is
    missing if any of its selected frames is missing. Raises UserError if the reward does not score single images.
    """

    media = frozenset({"video"})
    options: FramesOptions

    def __init__(self, options: FramesOptions, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        inner = get_registry().create("reward", options.reward, device=device)
        if "image" not in inner.media:
            inner.close()
            raise UserError(
                f"frames: the reward {options.reward.use} does not accept images, so it cannot score frames"
            )
        if not isinstance(inner, RewardModel):
            inner.close()
            raise UserError(
                f"frames: the reward {options.reward.use} compares the samples of a prompt, so it cannot score "
                "frames; choose a reward that scores each image independently"
            )
        self.inner: RewardModel = inner
        self.range = inner.range  # type: ignore[misc]
        self.group_by = inner.group_by  # type: ignore[misc]
        self.concurrency = inner.concurrency

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Apply the checks of the image reward."""
        self.inner.check_prompts(prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return what the image reward reports of itself."""
        return self.inner.provenance()

    def keep_in(self, directory: Path) -> None:
        """Let the image reward keep what it needs."""
        self.inner.keep_in(directory)

    def costs(self) -> Mapping[str, float]:
        """Return the costs of the image reward."""
        return self.inner.costs()

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score videos [B, F, 3, H, W], float in [0, 1]; returns values float32 [B] on the CPU.

        Diagnostics: `frames`, the image reward's diagnostics of each frame with its `frame` index and `value`; `marks`
        of all frames, each with its `frame`; `clauses`, if a single frame was selected; `reason`, the first reason why
        a frame could not be scored.
        """
        if not len(media):
            return Scores(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
        chosen = chosen_frames(self.options.frames, media.shape[1])
        count = len(chosen)
        scores = self.inner.score(media[:, chosen].flatten(0, 1), [p for p in prompts for _ in chosen])
        values = scores.values.detach().float().cpu().view(-1, count)
        missing = scores.missing.cpu().view(-1, count)
        total = values.amin(1) if self.options.aggregate == "min" else values.mean(1)
        incomplete = missing.any(1)
        per_image = list(scores.diagnostics) or [{}] * values.numel()
        diagnostics = tuple(
            _diagnosis(chosen, values[i].tolist(), missing[i].tolist(), per_image[i * count : (i + 1) * count])
            for i in range(len(media))
        )
        return Scores(total.masked_fill(incomplete, 0.0), incomplete, diagnostics)

    def examples(self) -> Sequence[Example]:
        """Return the examples of the image reward as static videos [3, 3, H, W]."""
        return [
            Example(one.name, one.prompt, one.media.expand(3, -1, -1, -1).clone(), good=one.good)
            for one in self.inner.examples()
            if one.media.dim() == 3
        ]

    def close(self) -> None:
        """Close the image reward."""
        self.inner.close()


def _diagnosis(
    chosen: Sequence[int], values: Sequence[float], missing: Sequence[bool], per_image: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    frames, marks = [], []
    for frame, value, is_missing, details in zip(chosen, values, missing, per_image, strict=True):
        frames.append({"frame": frame, "value": None if is_missing else value, **details})
        marks += [{**mark, "frame": frame} for mark in details.get("marks") or ()]
    diagnosis: dict[str, Any] = {"frames": frames}
    if marks:
        diagnosis["marks"] = marks
    if len(per_image) == 1 and per_image[0].get("clauses"):
        diagnosis["clauses"] = per_image[0]["clauses"]
    reason = next((details["reason"] for details in per_image if details.get("reason")), None)
    return diagnosis | ({"reason": reason} if reason else {})
