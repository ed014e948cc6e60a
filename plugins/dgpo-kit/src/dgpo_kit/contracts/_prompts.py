"""Prompt sources: the same prompts every time, and none in both splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from dgpo_core.contracts import PromptSource
from dgpo_kit.contracts._assertions import global_state_left_alone, that
from dgpo_kit.contracts._check import Check, checks_of, run_all

__all__ = ["check_prompts", "prompts_checks"]

Make = Callable[[], PromptSource]
SPLITS: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")


def check_prompts(make: Make) -> None:
    """Prompts with a text and metadata that JSON can hold, always the same; none of them in both splits."""
    run_all(prompts_checks(make))


def prompts_checks(make: Make) -> Iterator[Check]:
    """What a prompt source promises. make: builds it, the same every time."""

    def subject() -> Make:
        make()
        return make

    return checks_of(subject, splits, metadata, determinism, disjoint_splits, random_state)


def _texts(make: Make, order: tuple[Literal["train", "heldout"], ...] = SPLITS) -> dict[str, list[tuple[Any, ...]]]:
    """(text, digests of media, metadata, negative text, size) of each prompt."""
    source = make()
    return {
        split: [(p.text, p.key[1], dict(p.metadata), p.negative, p.size) for p in source.prompts(split)]
        for split in order
    }


def splits(make: Make) -> None:
    """Both splits have prompts, each with a text."""
    for split, found in _texts(make).items():
        that(found, f"there are {split} prompts")
        that(all(text.strip() for text, *_ in found), f"{split}: every prompt has a text")


def metadata(make: Make) -> None:
    """JSON can hold what rewards are told."""
    for found in _texts(make).values():
        json.dumps([metadata for _, _, metadata, *_ in found], allow_nan=False)


def determinism(make: Make) -> None:
    """The same options give the same prompts, whichever split is asked for first."""
    once, again = _texts(make), _texts(make, SPLITS[::-1])
    for split in SPLITS:
        that(again[split] == once[split], f"{split}: the same options give the same prompts")


def disjoint_splits(make: Make) -> None:
    """What is evaluated on was never trained on."""
    found = {split: {prompt[:2] for prompt in prompts} for split, prompts in _texts(make).items()}
    shared = found["train"] & found["heldout"]
    that(not shared, f"the splits share no prompt: {sorted(text for text, _ in shared)[:3]}")


def random_state(make: Make) -> None:
    """Draws come from a key of its own."""
    with global_state_left_alone("a prompt source"):
        _texts(make)
