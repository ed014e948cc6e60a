"""Options of the miniature's parts."""

from __future__ import annotations

from pydantic import Field

from dgpo_schemas.base import Int, Options

__all__ = ["MiniaturePromptsOptions", "ShapesOptions", "SignPromptsOptions"]


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
