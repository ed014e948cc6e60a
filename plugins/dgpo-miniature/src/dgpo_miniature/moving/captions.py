"""Captions of the world of moving shapes, and their faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from random import Random

from dgpo_miniature.moving.names import COLORS, DIRECTIONS, SHAPES

__all__ = ["HELDOUT_TEMPLATES", "TRAIN_TEMPLATES", "Caption", "all_captions", "corrupt", "text"]

TRAIN_TEMPLATES = ("a {} {} moving {}", "a video of a {} {} moving {}")
HELDOUT_TEMPLATES = ("a {} {} that moves {}", "a clip of a {} {} that moves {}")


@dataclass(frozen=True, slots=True, order=True)
class Caption:
    """Content of a clip: one of SHAPES, one of COLORS and one of DIRECTIONS."""

    shape: str
    color: str
    direction: str

    def metadata(self) -> dict[str, str]:
        """Return the prompt metadata that the reward `miniature-motion` requires."""
        return {"shape": self.shape, "color": self.color, "direction": self.direction}


def text(caption: Caption, template: str) -> str:
    """Return the text of the caption."""
    return template.format(caption.color, caption.shape, caption.direction)


def all_captions() -> list[Caption]:
    """Return every content, in a fixed order: 3 shapes x 4 colors x 4 directions."""
    return [Caption(*parts) for parts in product(SHAPES, COLORS, DIRECTIONS)]


def corrupt(caption: Caption, rng: Random) -> Caption:
    """Return the caption with another direction (half the time), color or shape."""
    what = rng.choices(("direction", "color", "shape"), weights=(2, 1, 1))[0]
    names = {"direction": DIRECTIONS, "color": COLORS, "shape": SHAPES}[what]
    others = [name for name in names if name != getattr(caption, what)]
    return replace(caption, **{what: rng.choice(others)})
