"""Held-out prompts in other words, for the monitor `evaluation.monitors.wording`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.base import UseBlock
from dgpo_schemas.text import is_visible

if TYPE_CHECKING:
    from dgpo_core.contracts import PromptSource
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.evaluation import WordingSection

__all__ = ["KEY", "reworded_prompts"]

KEY = "reworded"
"""The metadata key of the text in other words."""
WHERE = "evaluation.monitors.wording"


def reworded_prompts(
    section: WordingSection | None, prompts: Sequence[Prompt], registry: Registry, *, some: bool = True
) -> dict[int, Prompt]:
    """Return the index of each prompt that can be said in other words, and the prompt with the other words.

    Everything but the text stays: metadata, media, size, source. some: whether there must be one. Raises UserError for
    a file that cannot be read, and if none of the prompts can be said in other words.
    """
    if section is None:
        return {}
    if section.file is not None:
        by_text = _of_file(section.file)
        texts = [by_text.get(prompt.text) for prompt in prompts]
    else:
        assert section.use is not None
        source: PromptSource = registry.create("prompts", UseBlock(use=section.use, options=section.options))
        texts = list(source.reworded(prompts))
    found = {
        i: replace(prompt, text=text)
        for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
        if text is not None and text != prompt.text
    }
    if some and not found:
        origin = f"{section.file}: has" if section.file else f"{section.use} has"
        raise UserError(f"{WHERE}: {origin} other words for none of the {len(prompts)} held-out prompts")
    return found


def _of_file(path: str) -> Mapping[str, str]:
    """Return the text in other words of each prompt of a file."""
    try:
        prompts = load_file(path)
    except UserError as error:
        raise UserError(f"{WHERE}: {error}") from error
    found: dict[str, str] = {}
    for prompt in prompts:
        text = prompt.metadata.get(KEY)
        if not isinstance(text, str) or not is_visible(text):
            raise UserError(f"{WHERE}: {prompt.origin}: `{KEY}` must be the prompt in other words, a text")
        if found.setdefault(prompt.text, text) != text:
            raise UserError(f"{WHERE}: {prompt.origin}: the prompt already has other words")
    return found
