"""Condition images of prompts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image

from dgpo_core.errors import UserError
from dgpo_core.media.conditions import condition_medium, name_of
from dgpo_core.types import ConditionMedium, Prompt

__all__ = ["check_images", "example_image"]


def check_images(prompts: Sequence[Prompt], backbone: str) -> None:
    """Raise UserError for a prompt without exactly one condition image."""
    for prompt in prompts:
        kinds = [medium.kind for medium in prompt.media]
        if kinds == ["image"]:
            continue
        wanted = f"but the backbone {backbone} requires one condition image"
        if not kinds:
            problem = f"has no media, {wanted}: give its path as `media`"
        elif len(kinds) > 1:
            problem = f"has {len(kinds)} media, {wanted}: keep the first frame"
        else:
            problem = (
                f"has a video ({name_of(prompt.media[0])}), {wanted}: save the first frame of the video as an image"
            )
        raise UserError(f"{f'{prompt.origin}: ' if prompt.origin else ''}the prompt {problem}")


@cache
def example_image() -> ConditionMedium:
    """Return a small image with colors that depend on the place."""
    colors = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle).resize((48, 32)) for angle in (0, 90, 180)])
    content = io.BytesIO()
    colors.save(content, "PNG")
    return condition_medium(content.getvalue())
