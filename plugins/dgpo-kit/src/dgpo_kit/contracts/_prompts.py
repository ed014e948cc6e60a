"""Checks of prompt sources: deterministic prompts, and disjoint splits."""

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
    """Check that prompts have a text and JSON-serializable metadata, are deterministic, and that splits are disjoint.

    Raises AssertionError at the first violation.
    """
    run_all(prompts_checks(make))


def prompts_checks(make: Make) -> Iterator[Check]:
    """Yield the checks of a prompt source. make: builds it, always the same."""

    def subject() -> Make:
        make()
        return make

    return checks_of(subject, splits, metadata, determinism, disjoint_splits, random_state)


def _texts(make: Make, order: tuple[Literal["train", "heldout"], ...] = SPLITS) -> dict[str, list[tuple[Any, ...]]]:
    """Return (text, digests of media, metadata, negative prompt, size) of each prompt by split."""
    source = make()
    return {
        split: [(p.text, p.key[1], dict(p.metadata), p.negative, p.size) for p in source.prompts(split)]
        for split in order
    }


def splits(make: Make) -> None:
    """Both splits have prompts, each with a text."""
    for split, found in _texts(make).items():
        that(found, f"{split}: there must be at least one prompt")
        that(all(text.strip() for text, *_ in found), f"{split}: every prompt must have a text")


def metadata(make: Make) -> None:
    """The metadata of all prompts is JSON-serializable."""
    for found in _texts(make).values():
        json.dumps([metadata for _, _, metadata, *_ in found], allow_nan=False)


def determinism(make: Make) -> None:
    """The same options return the same prompts, in either order of the splits."""
    once, again = _texts(make), _texts(make, SPLITS[::-1])
    for split in SPLITS:
        that(again[split] == once[split], f"{split}: the same options must return the same prompts")


def disjoint_splits(make: Make) -> None:
    """No held-out prompt is also a training prompt."""
    found = {split: {prompt[:2] for prompt in prompts} for split, prompts in _texts(make).items()}
    shared = found["train"] & found["heldout"]
    that(not shared, f"the splits must not share prompts, got {sorted(text for text, _ in shared)[:3]}")


def random_state(make: Make) -> None:
    """Prompts do not use a global random generator."""
    with global_state_left_alone("a prompt source"):
        _texts(make)
