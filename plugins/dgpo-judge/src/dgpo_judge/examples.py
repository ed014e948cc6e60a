"""Pictures that any judge can tell apart, for the self-test."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dgpo_core.types import Example, Prompt

__all__ = ["drawn_examples"]

SIDE = 128
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def drawn_examples() -> Sequence[Example]:
    """Return a red and a blue square on gray, for a prompt that asks for the red one."""
    question = {"questions": [["Is there a red square in the image?", "Yes"]]}
    prompt = Prompt("a plain red square on a gray background", question)
    return [Example(name, prompt, _square(color), good=color is RED) for name, color in (("red", RED), ("blue", BLUE))]


def _square(color: Sequence[float]) -> torch.Tensor:
    image = torch.full((3, SIDE, SIDE), 0.5)
    image[:, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4] = torch.tensor(color)[:, None, None]
    return image
