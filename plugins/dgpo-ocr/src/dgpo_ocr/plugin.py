"""Hook implementations of dgpo-ocr. This module must not import anything heavy."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_prompt_sources", "dgpo_rewards", "dgpo_suites"]

dgpo_contract = 3


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare the reward for rendered text."""
    summary = "How closely the text in the image or video matches the prompt's quoted text, in [0, 1]"
    return [Component("ocr", summary, "dgpo_ocr.reward:OcrReward", "dgpo_ocr.options:OcrOptions")]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Component]:
    """Declare the prompts with quoted text."""
    summary = "Prompts for images with a quoted text; the train and held-out splits share no words"
    return [Component("ocr", summary, "dgpo_ocr.prompts:OcrPrompts", "dgpo_ocr.options:OcrPromptsOptions")]


@hookimpl
def dgpo_suites() -> Sequence[Component]:
    """Declare the benchmark."""
    summary = "Flow-GRPO's 1,018 prompts with a quoted text; the mean of the reward `ocr` with the published rule"
    return [Component("ocr", summary, "dgpo_ocr.benchmark:OcrSuite", "dgpo_ocr.options:OcrSuiteOptions")]
