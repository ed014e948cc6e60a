"""The reward `miniature-motion`: does the clip show the shape that was asked for, moving the way that was asked for?"""

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
    """Shape, color and direction of the only thing that moves, by the rules of `detector`.

    strict (default): 1 if all three are as asked, else 0. Otherwise the share of the three that are, 0, 1/3, 2/3 or 1;
    a clip without exactly one shape meets none.
    """

    media = frozenset({"video"})
    range = (0.0, 1.0)
    options: MiniatureMotionOptions

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Every prompt's metadata names a shape, a color and a direction of the world."""
        for prompt in prompts:
            for key, names in DEMANDS.items():
                if prompt.metadata.get(key) not in names:
                    where = f"{prompt.origin}: " if prompt.origin else ""
                    raise UserError(
                        f"{where}miniature-motion: the metadata of prompt {prompt.text!r} need `{key}`, one of "
                        f"{', '.join(names)}; use `prompts: {{use: miniature-video}}`"
                    )

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Videos [B, F, 3, H, W], float in [0, 1], to values float32 [B]; one that is not finite is missing."""
        finite = media.flatten(1).isfinite().all(1).cpu() if len(media) else torch.zeros(0, dtype=torch.bool)
        values, diagnostics = torch.zeros(len(prompts)), []
        for i, (video, prompt) in enumerate(zip(media.detach().float().cpu().numpy(), prompts, strict=True)):
            if not finite[i]:
                diagnostics.append({"reason": "the video has pixels that are not finite"})
                continue
            seen = find_motion(video)
            met = {key: getattr(seen, key) == prompt.metadata[key] for key in DEMANDS}
            values[i] = float(all(met.values())) if self.options.strict else sum(met.values()) / len(met)
            diagnostics.append(_diagnosis(seen, prompt, met))
        return Scores(values, ~finite, tuple(diagnostics))

    def examples(self) -> Sequence[Example]:
        """Drawn clips, each with its own prompt (good), and with one demand not met (bad); [5, 3, 32, 32]."""
        rng = Random("examples")
        found = []
        for number, caption in enumerate(rng.sample(all_captions(), 4)):
            words = text(caption, TRAIN_TEMPLATES[0])
            for shown, good in ((caption, True), (corrupt(caption, rng), False)):
                name = f"{words}: {'as asked' if good else text(shown, TRAIN_TEMPLATES[0])}"
                video = torch.from_numpy(draw(shown, np.random.default_rng(number)))
                found.append(Example(name, Prompt(words, caption.metadata()), video, good=good))
        return found


def draw(caption: Caption, rng: np.random.Generator) -> NDArray[np.float32]:
    """One clip of a content, float32 [5, 3, 32, 32] in [0, 1]."""
    index = (np.array([names.index(getattr(caption, key))]) for key, names in DEMANDS.items())
    shape, color, direction = index
    video: NDArray[np.float32] = render(random_clips(shape, color, direction, rng))[0]
    return video


def _diagnosis(seen: Seen, prompt: Prompt, met: Mapping[str, bool]) -> dict[str, Any]:
    words = {"shape": "shape", "color": "color", "direction": "direction"}
    clauses = [
        {"text": f"{words[key]}: asked for {prompt.metadata[key]}, found {getattr(seen, key) or 'none'}", "ok": ok}
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
