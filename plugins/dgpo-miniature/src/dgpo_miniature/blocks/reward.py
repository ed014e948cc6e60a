"""The reward `miniature-blocks`: whether an image shows the blocks of its prompt, or how nearly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_miniature.blocks.captions import TASKS, TRAIN_TEMPLATES, Caption, all_captions, corrupt, matching, text
from dgpo_miniature.blocks.reading import agreement, evidence
from dgpo_miniature.blocks.world import ARRANGEMENTS, COLORS, SIZE, random_blocks
from dgpo_miniature.options import MiniatureBlocksOptions

__all__ = ["CLEAR", "MiniatureBlocks", "caption_of"]

CLEAR = 0.5
"""Smallest evidence by which a cell shows its state."""


class MiniatureBlocks(RewardModel):
    """Compares what the cells of an image show with the arrangements that the prompt describes.

    The value is 1 if every cell clearly shows one state and the arrangement is one of the prompt's, else 0. With
    `strict: false` it is the mean evidence over the cells for the best arrangement of the prompt's, a continuous value
    in [0, 1].

    With a `flaw` other arrangements satisfy a prompt, which training can exploit. `unseen-colors`: those with blocks of
    colors that the prompt does not name beside, as GenEval does not see objects of other classes. `uncounted`: those
    that fill all cells with the colors that it names, as where detections are added up and not compared with a number.
    """

    media = frozenset({"image"})
    range = (0.0, 1.0)
    group_by = "tag"
    options: MiniatureBlocksOptions

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError if the metadata of a prompt does not describe blocks."""
        for prompt in prompts:
            if caption_of(prompt.metadata) is None:
                where = f"{prompt.origin}: " if prompt.origin else ""
                raise UserError(
                    f"{where}miniature-blocks: the metadata of prompt {prompt.text!r} does not describe blocks; use "
                    "`prompts: {use: miniature-blocks}`"
                )

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score images [B, 3, 16, 16], float in [0, 1]; returns float32 [B]. Others and non-finite ones are missing."""
        if media.shape[2:] != (SIZE, SIZE):
            height, width = media.shape[2:]
            reason = f"images must be {SIZE}x{SIZE}, not {height}x{width}; set `rollout.resolution: {SIZE}`"
            everything = torch.ones(len(prompts), dtype=torch.bool)
            return Scores(torch.zeros(len(prompts)), everything, ({"reason": reason},) * len(prompts))
        finite = media.flatten(1).isfinite().all(1).cpu() if len(media) else torch.zeros(0, dtype=torch.bool)
        found = evidence(media.detach().float().cpu().nan_to_num().numpy())
        wanted = (
            np.stack([_wanted(_key(prompt.metadata), self.options.flaw) for prompt in prompts])
            if prompts
            else np.zeros((0, len(ARRANGEMENTS)), bool)
        )
        if self.options.strict:
            shown = found.argmax(axis=2)
            right = wanted[np.arange(len(found)), _place(shown)] & (found.max(axis=2) >= CLEAR).all(axis=1)
            values = right.astype(np.float32)
        else:
            values = np.where(wanted, agreement(found), 0.0).max(axis=1, initial=0.0)
        diagnostics = [{"found": _words(row)} for row in found.argmax(axis=2)]
        return Scores(torch.from_numpy(np.asarray(values, dtype=np.float32)), ~finite, tuple(diagnostics))

    def examples(self) -> Sequence[Example]:
        """Return rendered images that match their prompt (good) or differ in one clause (bad), [3, 16, 16]."""
        rng = Random("examples")
        found = []
        for number, task in enumerate(TASKS):
            caption = rng.choice(all_captions(task))
            words = text(caption, TRAIN_TEMPLATES[0])
            for shown, good in ((caption, True), (corrupt(caption, rng), False)):
                arrangement = ARRANGEMENTS[[rng.choice(np.flatnonzero(matching(shown)).tolist())]]
                image = torch.from_numpy(random_blocks(arrangement, np.random.default_rng(number))[0])
                name = f"{words}: {'as prompted' if good else _words(arrangement[0])}"
                found.append(Example(name, Prompt(words, caption.metadata()), image, good=good))
        return found


def caption_of(metadata: Mapping[str, Any]) -> Caption | None:
    """Return the caption that a prompt's metadata describes; None if there is none."""
    return _caption(_key(metadata))


def _key(metadata: Mapping[str, Any]) -> str:
    return repr([metadata.get(name) for name in ("tag", "colors", "count", "relation")])


@cache
def _caption(key: str) -> Caption | None:
    every = (caption for task in TASKS for caption in all_captions(task))
    return next((caption for caption in every if _key(caption.metadata()) == key), None)


@cache
def _wanted(key: str, flaw: Literal["unseen-colors", "uncounted"] | None) -> NDArray[np.bool_]:
    """Return which arrangements [S] satisfy the prompt with a key."""
    caption = _caption(key)
    assert caption is not None
    named = np.isin(ARRANGEMENTS, [1 + COLORS.index(color) for color in caption.colors])
    if flaw == "uncounted":
        return np.asarray(named.all(axis=1))
    wanted = matching(caption)
    return wanted if flaw is None else wanted[_place(np.where(named, ARRANGEMENTS, 0))]


def _place(arrangements: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices in ARRANGEMENTS of arrangements [..., 4]."""
    return np.asarray(arrangements @ (1 + len(COLORS)) ** np.arange(3, -1, -1))


def _words(arrangement: NDArray[np.int64]) -> str:
    """Describe an arrangement [4]: "red top left, blue bottom right"."""
    cells = ("top left", "top right", "bottom left", "bottom right")
    found = [f"{COLORS[state - 1]} {cell}" for state, cell in zip(arrangement, cells, strict=True) if state]
    return ", ".join(found) or "nothing"
