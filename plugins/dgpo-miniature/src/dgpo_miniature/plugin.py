"""Plugin declarations of dgpo-miniature. Do not import torch or numpy here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_detectors", "dgpo_prompt_sources", "dgpo_rewards"]

dgpo_contract = 3


@hookimpl
def dgpo_prompt_sources() -> Sequence[Component]:
    """Declare the prompt source of each world."""
    return [
        Component(
            name="miniature",
            summary="GenEval-format prompts about colored shapes, six tasks, disjoint train and held-out splits",
            implementation="dgpo_miniature.prompts:MiniaturePrompts",
            options="dgpo_miniature.options:MiniaturePromptsOptions",
        ),
        Component(
            name="miniature-signs",
            summary='Prompts that quote a short word (a sign that says "CAB"), disjoint train and held-out splits',
            implementation="dgpo_miniature.signs.prompts:SignPrompts",
            options="dgpo_miniature.options:SignPromptsOptions",
        ),
        Component(
            name="miniature-video",
            summary='Prompts about moving shapes ("a red circle moving left"), disjoint train and held-out splits',
            implementation="dgpo_miniature.moving.prompts:MiniatureVideoPrompts",
            options="dgpo_miniature.options:MiniatureVideoPromptsOptions",
        ),
        Component(
            name="miniature-blocks",
            summary='Prompts about colored blocks ("photo red left blue"), disjoint train and held-out splits',
            implementation="dgpo_miniature.blocks.prompts:BlockPrompts",
            options="dgpo_miniature.options:BlockPromptsOptions",
        ),
    ]


@hookimpl
def dgpo_detectors() -> Sequence[Component]:
    """Declare the detector of the world of shapes."""
    summary = "Rule-based detector of the miniature's colored shapes, for GenEval's evaluator"
    return [
        Component("shapes", summary, "dgpo_miniature.detector:ShapeDetector", "dgpo_miniature.options:ShapesOptions")
    ]


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare the rewards of moving shapes and of blocks; the other worlds use general image rewards."""
    return [
        Component(
            name="miniature-blocks",
            summary="Whether an image of the miniature of blocks shows what the prompt describes, or how nearly",
            implementation="dgpo_miniature.blocks.reward:MiniatureBlocks",
            options="dgpo_miniature.options:MiniatureBlocksOptions",
        ),
        Component(
            name="miniature-motion",
            summary="Whether a clip of the video miniature shows the shape, color and direction of the prompt",
            implementation="dgpo_miniature.moving.motion:MiniatureMotion",
            options="dgpo_miniature.options:MiniatureMotionOptions",
        ),
    ]
