"""Options of the miniature's parts."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import Int, Options

__all__ = [
    "MiniatureMotionOptions", "MiniaturePromptsOptions", "MiniatureVideoPromptsOptions", "ShapesOptions",
    "SignPromptsOptions",
]  # fmt: skip


class MiniaturePromptsOptions(Options):
    """How many prompts each split has, and which."""

    train_count: Int = Field(
        default=3600, ge=6, le=10**7, description="Training prompts, an equal share of each of six tasks."
    )
    heldout_count: Int = Field(
        default=600, ge=6, le=10**7, description="Held-out prompts, an equal share of each task."
    )
    seed: Int = Field(default=0, description="Chooses which prompts and in which order; never which split.")


class SignPromptsOptions(Options):
    """How many prompts each split has, and which."""

    train_count: Int = Field(
        default=1440, ge=1, le=10**7, description="Training prompts; of 1440 words, which then repeat."
    )
    heldout_count: Int = Field(
        default=288, ge=1, le=10**7, description="Held-out prompts; of 288 words, which then repeat."
    )
    seed: Int = Field(default=0, description="Chooses which prompts and in which order; never which split.")


class ShapesOptions(Options):
    """The detector of shapes has no options."""


class MiniatureVideoPromptsOptions(Options):
    """How many prompts each split has, and in which order."""

    train_count: Int = Field(
        default=720, ge=1, le=10**7, description="Training prompts; of 72 texts, which then repeat."
    )
    heldout_count: Int = Field(
        default=240, ge=1, le=10**7, description="Held-out prompts; of 24 texts, which then repeat."
    )
    seed: Int = Field(default=0, description="Chooses the order; never which split.")


class MiniatureMotionOptions(Options):
    """How a clip is scored."""

    strict: bool = Field(
        default=True,
        description="1 if shape, color and direction are all as asked, else 0; if false, the share of the three.",
    )
