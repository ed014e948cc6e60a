"""What a recognized text is worth. Pure: texts in, numbers out; imports no torch.

With t the text asked for and r all recognized lines joined, both in plain form: d = 0 if t is part of r, else the
Levenshtein distance of r and t, at most len(t); the value is 1 - d / len(t). Two rules differ in the plain form:

- `normalized`, this project's: texts that look alike are alike (`normal`), and white space is nothing.
- `flowgrpo`, published: `flow_grpo/ocr.py` of Flow-GRPO (arXiv 2505.05470) and DGPO (arXiv 2510.08425). It removes
  spaces, U+0020 and no other white space, and lower-cases with `str.lower`.
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
    """value in [0, 1], 1 is best; distance: the edits charged, 0 to the target's length; surplus: how many characters
    more were read than asked for, charged or not."""

    value: float
    distance: int
    surplus: int


def plain(text: str, rule: Rule = "normalized") -> str:
    """A text as the rule compares it."""
    return squeeze(text) if rule == "normalized" else text.replace(" ", "").lower()


def judge(read: str, target: str, *, strict: bool = False, rule: Rule = "normalized") -> Verdict:
    """The verdict on a recognized text. `strict` charges surplus text even around a complete target.

    Raises ValueError for a target of which the rule leaves nothing.
    """
    r, t = plain(read, rule), plain(target, rule)
    if not t:
        raise ValueError("the target is empty")
    # Beyond the cutoff the library stops counting and gives cutoff + 1.
    edits = min(Levenshtein.distance(r, t, score_cutoff=len(t)), len(t))
    distance = 0 if t in r and not strict else edits
    return Verdict(1 - distance / len(t), distance, max(0, len(r) - len(t)))


def over_frames(values: Sequence[float], rule: VideoRule) -> float:
    """A video's value from those of its sampled frames: their mean, or Flow-GRPO's mean of the positive ones (0 if
    there is none). Raises ValueError where there are no frames."""
    if not values:
        raise ValueError("the video has no frames")
    if rule == "flowgrpo":
        values = [value for value in values if value > 0]
    return sum(values) / len(values) if values else 0.0
