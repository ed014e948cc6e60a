"""What dgpo-miniature declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Part

__all__ = ["dgpo_detectors", "dgpo_prompt_sources"]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Part]:
    """The prompts of the world of shapes and of the world of signs."""
    return [
        Part(
            name="miniature",
            summary="GenEval-format prompts about coloured shapes, six tasks, disjoint train and held-out splits",
            implementation="dgpo_miniature.prompts:MiniaturePrompts",
            options="dgpo_miniature.options:MiniaturePromptsOptions",
        ),
        Part(
            name="miniature-signs",
            summary='Prompts that quote a short word (a sign that says "CAB"), disjoint train and held-out splits',
            implementation="dgpo_miniature.signs.prompts:SignPrompts",
            options="dgpo_miniature.options:SignPromptsOptions",
        ),
    ]


@hookimpl
def dgpo_detectors() -> Sequence[Part]:
    """The detector of the world of shapes."""
    summary = "Rule-based detector of the miniature's coloured shapes, for GenEval's evaluator"
    return [Part("shapes", summary, "dgpo_miniature.detector:ShapeDetector", "dgpo_miniature.options:ShapesOptions")]
