"""The reward `miniature-motion`: whether a clip shows the shape, color and direction of its prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_miniature.moving.captions import TRAIN_TEMPLATES, Caption, all_captions, corrupt, text
from dgpo_miniature.moving.detector import Seen, find_motion
from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES
from dgpo_miniature.moving.world import random_clips, render
from dgpo_miniature.options import MiniatureMotionOptions

__all__ = ["MiniatureMotion"]

DEMANDS: Mapping[str, Sequence[str]] = {"shape": SHAPES, "color": COLORS, "direction": DIRECTIONS}


class MiniatureMotion(RewardModel):
    """Compares shape, color and direction of the only moving shape, found by the rules of `detector`, with the prompt.

    The value is 1 if all three match, else 0. With `strict: false` it is the fraction that match: 0, 1/3, 2/3 or 1. For
    a clip without exactly one shape, none match.
    """

    media = frozenset({"video"})
    range = (0.0, 1.0)
    options: MiniatureMotionOptions

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError if the metadata of a prompt lacks a valid shape, color or direction."""
        for prompt in prompts:
            for key, names in DEMANDS.items():
                if prompt.metadata.get(key) not in names:
                    where = f"{prompt.origin}: " if prompt.origin else ""
                    raise UserError(
                        f"{where}miniature-motion: prompt {prompt.text!r} requires metadata `{key}`, one of "
                        f"{', '.join(names)}; use `prompts: {{use: miniature-video}}`"
                    )

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score videos [B, F, 3, H, W], float in [0, 1]; returns float32 [B]. Non-finite videos are missing."""
        finite = media.flatten(1).isfinite().all(1).cpu() if len(media) else torch.zeros(0, dtype=torch.bool)
        values, diagnostics = torch.zeros(len(prompts)), []
        for i, (video, prompt) in enumerate(zip(media.detach().float().cpu().numpy(), prompts, strict=True)):
            if not finite[i]:
                diagnostics.append({"reason": "the video has non-finite pixels"})
                continue
            seen = find_motion(video)
            met = {key: getattr(seen, key) == prompt.metadata[key] for key in DEMANDS}
            values[i] = float(all(met.values())) if self.options.strict else sum(met.values()) / len(met)
            diagnostics.append(_diagnosis(seen, prompt, met))
        return Scores(values, ~finite, tuple(diagnostics))

    def examples(self) -> Sequence[Example]:
        """Return rendered clips that match their prompt (good) or differ in one word (bad), [5, 3, 32, 32]."""
        rng = Random("examples")
        found = []
        for number, caption in enumerate(rng.sample(all_captions(), 4)):
            words = text(caption, TRAIN_TEMPLATES[0])
            for shown, good in ((caption, True), (corrupt(caption, rng), False)):
                name = f"{words}: {'as prompted' if good else text(shown, TRAIN_TEMPLATES[0])}"
                video = torch.from_numpy(draw(shown, np.random.default_rng(number)))
                found.append(Example(name, Prompt(words, caption.metadata()), video, good=good))
        return found


def draw(caption: Caption, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a clip with the content of a caption, float32 [5, 3, 32, 32] in [0, 1]."""
    index = (np.array([names.index(getattr(caption, key))]) for key, names in DEMANDS.items())
    shape, color, direction = index
    video: NDArray[np.float32] = render(random_clips(shape, color, direction, rng))[0]
    return video


def _diagnosis(seen: Seen, prompt: Prompt, met: Mapping[str, bool]) -> dict[str, Any]:
    clauses = [
        {"text": f"{key}: expected {prompt.metadata[key]}, found {getattr(seen, key) or 'none'}", "ok": ok}
        for key, ok in met.items()
    ]
    what = " ".join(filter(None, (seen.color, seen.shape))) or "something"
    marks = [
        {"text": what, "box": list(box), "frame": frame, "ok": all(met.values())}
        for frame, box in enumerate(seen.boxes)
        if box is not None
    ]
    found = {key: getattr(seen, key) for key in DEMANDS}
    travel = None if seen.travel is None else [round(way, 2) for way in seen.travel]
    return {"found": found, "travel": travel, "note": seen.reason, "clauses": clauses, "marks": marks}
