"""The score of a recognized text. Pure functions; does not import torch.

Let t be the target and r all recognized lines joined, both in plain form. Then d = 0 if r contains t, else the
Levenshtein distance of r and t, at most len(t), and the value is 1 - d / len(t). The rules differ in the plain form:

- `normalized`, of this project: Unicode normalization (see `normal`), without white space.
- `flowgrpo`, as published: `flow_grpo/ocr.py` of Flow-GRPO (arXiv 2505.05470) and DGPO (arXiv 2510.08425). It removes
  spaces (U+0020, no other white space), and lower-cases with `str.lower`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

from dgpo_ocr.normal import squeeze

__all__ = ["Rule", "Verdict", "VideoRule", "judge", "over_frames", "plain"]

Rule = Literal["normalized", "flowgrpo"]
VideoRule = Literal["mean", "flowgrpo"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The score of a text.

    value: in [0, 1], 1 is best; distance: edits that count, from 0 to the target's length; surplus: characters beyond
    the target's length, whether penalized or not.
    """

    value: float
    distance: int
    surplus: int


def plain(text: str, rule: Rule = "normalized") -> str:
    """Return the form of a text that the rule compares."""
    return squeeze(text) if rule == "normalized" else text.replace(" ", "").lower()


def judge(read: str, target: str, *, strict: bool = False, rule: Rule = "normalized") -> Verdict:
    """Score a recognized text. `strict` penalizes surplus text even around a complete target.

    Raises ValueError for a target whose plain form is empty.
    """
    r, t = plain(read, rule), plain(target, rule)
    if not t:
        raise ValueError("the target is empty")
    # Beyond the cutoff the library stops counting and returns cutoff + 1.
    edits = min(Levenshtein.distance(r, t, score_cutoff=len(t)), len(t))
    distance = 0 if t in r and not strict else edits
    return Verdict(1 - distance / len(t), distance, max(0, len(r) - len(t)))


def over_frames(values: Sequence[float], rule: VideoRule) -> float:
    """Return a video's value from those of its sampled frames.

    It is their mean, or with `flowgrpo` the mean of the positive ones (0 if there are none). Raises ValueError without
    frames.
    """
    if not values:
        raise ValueError("the video has no frames")
    if rule == "flowgrpo":
        values = [value for value in values if value > 0]
    return sum(values) / len(values) if values else 0.0
