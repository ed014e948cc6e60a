"""Condition images of prompts."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image

from dgpo_core.errors import UserError
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_schemas.text import clean

__all__ = ["check_images", "example_image", "image_of"]


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
            path = clean(prompt.media[0].path, 300)
            problem = f"has a video{f' ({path})' if path else ''}, {wanted}: save the first frame as an image"
        raise UserError(f"{f'{prompt.origin}: ' if prompt.origin else ''}the prompt {problem}")


def image_of(medium: ConditionMedium) -> Image.Image:
    """Return a condition image with 8 bits per channel, as diffusers' pipelines take it."""
    return Image.fromarray((medium.read() * 255).round().byte().permute(1, 2, 0).numpy())


@cache
def example_image() -> ConditionMedium:
    """Return a small image with colors that depend on the place."""
    colors = Image.merge("RGB", [Image.linear_gradient("L").rotate(angle).resize((48, 32)) for angle in (0, 90, 180)])
    content, pixels = io.BytesIO(), torch.from_numpy(np.array(colors)).permute(2, 0, 1) / 255
    colors.save(content, "PNG")
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    return ConditionMedium("image", digest, content=content.getvalue(), reader=lambda _: pixels.clone())
