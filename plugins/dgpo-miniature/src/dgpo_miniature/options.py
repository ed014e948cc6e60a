"""Options of the components of dgpo-miniature."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dgpo_schemas.base import Int, Options

__all__ = [
    "BlockPromptsOptions", "MiniatureBlocksOptions", "MiniatureMotionOptions", "MiniaturePromptsOptions",
    "MiniatureVideoPromptsOptions", "ShapesOptions", "SignPromptsOptions",
]  # fmt: skip


class MiniaturePromptsOptions(Options):
    """Number of prompts per split, and their selection."""

    train_count: Int = Field(
        default=3600, ge=6, le=10**7, description="Number of training prompts, in equal shares of six tasks."
    )
    heldout_count: Int = Field(
        default=600, ge=6, le=10**7, description="Number of held-out prompts, in equal shares of six tasks."
    )
    seed: Int = Field(default=0, description="Seed of the selection and order of prompts; does not affect the split.")


class SignPromptsOptions(Options):
    """Number of prompts per split, and their selection."""

    train_count: Int = Field(
        default=1440, ge=1, le=10**7, description="Number of training prompts; 1440 distinct words, then repeated."
    )
    heldout_count: Int = Field(
        default=288, ge=1, le=10**7, description="Number of held-out prompts; 288 distinct words, then repeated."
    )
    seed: Int = Field(default=0, description="Seed of the selection and order of prompts; does not affect the split.")


class ShapesOptions(Options):
    """The detector of shapes has no options."""


class MiniatureVideoPromptsOptions(Options):
    """Number of prompts per split, and their order."""

    train_count: Int = Field(
        default=720, ge=1, le=10**7, description="Number of training prompts; 72 distinct texts, then repeated."
    )
    heldout_count: Int = Field(
        default=240, ge=1, le=10**7, description="Number of held-out prompts; 24 distinct texts, then repeated."
    )
    seed: Int = Field(default=0, description="Seed of the order; does not affect the split.")


class MiniatureMotionOptions(Options):
    """Options of the reward `miniature-motion`."""

    strict: bool = Field(
        default=True,
        description="Score 1 if shape, color and direction all match, else 0; if false, the fraction that match.",
    )


class BlockPromptsOptions(Options):
    """Number of prompts per split, and their order."""

    train_count: Int = Field(default=480, ge=4, le=10**7, description="Number of training prompts; texts repeat.")
    heldout_count: Int = Field(default=480, ge=4, le=10**7, description="Number of held-out prompts; texts repeat.")
    seed: Int = Field(default=0, description="Seed of the order; does not affect the split.")


class MiniatureBlocksOptions(Options):
    """Options of the reward `miniature-blocks`."""

    strict: bool = Field(
        default=True,
        description="Score 1 if the image shows the prompt's blocks and nothing else, else 0; if false, the mean over "
        "the cells of how clearly they show them, in [0, 1].",
    )
    flaw: Literal["unseen-colors", "uncounted"] | None = Field(
        default=None,
        description="A flaw to study reward hacking with. unseen-colors: do not see blocks of colors that the prompt "
        "does not name; uncounted: any number in any place will do, and more blocks of the colors that it names are "
        "better.",
    )
