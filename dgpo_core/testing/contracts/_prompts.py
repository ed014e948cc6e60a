"""Prompt sources: the same prompts every time, and none in both splits."""

from __future__ import annotations

import json
from collections.abc import Callable

from dgpo_core.contracts import PromptSource
from dgpo_core.testing.contracts._assertions import global_state_left_alone, that

__all__ = ["check_prompts"]


def check_prompts(make: Callable[[], PromptSource]) -> None:
    """Prompts with a text and metadata that JSON can hold, always the same; none of them in both splits."""
    with global_state_left_alone("a prompt source"):
        splits = {split: list(make().prompts(split)) for split in ("train", "heldout")}
        again = {split: list(make().prompts(split)) for split in ("heldout", "train")}
    for split, found in splits.items():
        that(found, f"there are {split} prompts")
        that(all(prompt.text.strip() for prompt in found), f"{split}: every prompt has a text")
        json.dumps([dict(prompt.metadata) for prompt in found], allow_nan=False)
        same = [(p.text, dict(p.metadata)) for p in again[split]] == [(p.text, dict(p.metadata)) for p in found]
        that(same, f"{split}: the same options give the same prompts")
    shared = {p.text for p in splits["train"]} & {p.text for p in splits["heldout"]}
    that(not shared, f"the splits share no prompt: {sorted(shared)[:3]}")
