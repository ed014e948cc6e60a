"""What dgpo-ocr declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_prompt_sources", "dgpo_rewards"]


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """The reward for rendered text."""
    summary = "How nearly the quoted text of the prompt is read in the image or video, in [0, 1]"
    return [Component("ocr", summary, "dgpo_ocr.reward:OcrReward", "dgpo_ocr.options:OcrOptions")]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Component]:
    """Prompts that ask for a text."""
    summary = "Images with a quoted text in them, train and held-out splits without a common word"
    return [Component("ocr", summary, "dgpo_ocr.prompts:OcrPrompts", "dgpo_ocr.options:OcrPromptsOptions")]
