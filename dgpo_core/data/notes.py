"""Warnings and notes about prompts: held-out prompts that are trained on, truncated texts, doubtful keys.

Imports torch only when prompts are drawn at random, because `dgpo validate` uses this module.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dgpo_core.data.checks import shown
from dgpo_core.data.prompts import some_of
from dgpo_core.types import Prompt
from dgpo_schemas.prompt_keys import doubtful
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone
    from dgpo_schemas.run import RunConfig

__all__ = ["counted", "guided", "longer_than_read", "notes", "overlap", "unheard"]


def overlap(train: Sequence[Prompt], heldout: Sequence[Prompt], count: int) -> str | None:
    """A warning with the number of held-out prompts that are trained on, of the `count` that `some_of` evaluates; None
    if there are none.

    Case, white space and the ways in which Unicode writes a letter make no other prompt: text encoders fold some of
    them, and a text that differs in nothing else tests nothing new. Another image to edit does.
    """
    exact, folded = {prompt.key[:2] for prompt in train}, {_folded(prompt) for prompt in train}
    if not any(_folded(prompt) in folded for prompt in heldout):
        return None  # without drawing any
    drawn = some_of(heldout, count)
    shared = [prompt for prompt in drawn if _folded(prompt) in folded]
    if not shared:
        return None
    alike = sum(prompt.key[:2] not in exact for prompt in shared)
    first = shared[0]
    where = f" ({first.origin})" if first.origin else ""
    return (
        f"prompts.heldout: {len(shared)} of {len(drawn)} held-out prompts ({_share(len(shared), len(drawn))}) are "
        f"also training prompts{f', {alike} of them except for case or spaces' if alike else ''}, the first is "
        f"{shown(first.text)}{where}; remove them from one of the two"
    )


def longer_than_read(prompts: Sequence[Prompt], backbone: Backbone) -> str | None:
    """A warning with the number of prompts, and of negative texts, whose end the backbone's text encoders do not see;
    None if there are none."""
    reported = [_longer(prompts, backbone, "prompts", "the model does not see what follows")]
    negative = [replace(prompt, text=prompt.negative) for prompt in prompts if prompt.negative]
    if negative and backbone.supports_guidance:
        reported.append(_longer(negative, backbone, "negative texts", "nothing is led away from what follows"))
    return "; ".join(filter(None, reported)) or None


def _longer(prompts: Sequence[Prompt], backbone: Backbone, what: str, so: str) -> str | None:
    from dgpo_core.plugins import contract_checks  # with torch, which takes a while to import

    different = list({prompt.key: prompt for prompt in prompts}.values())
    truncated_prompts, limit = contract_checks.truncated_prompts(backbone, different)
    if not truncated_prompts:
        return None
    long = {different[i].key for i in truncated_prompts}
    found = [prompt for prompt in prompts if prompt.key in long]
    first = found[0]
    where = f"{first.origin}, " if first.origin else ""
    are = "is" if len(found) == 1 else "are"
    return (
        f"{len(found)} of {len(prompts)} {what} {are} longer than the text encoders read ({limit} tokens), the first "
        f"is {where}{shown(first.text)}: {so}"
    )


def notes(prompts: Sequence[Prompt]) -> list[str]:
    """What may be meant otherwise than it is read: keys of metadata that are nearly keys of their own, and media of
    which reading leaves something out."""
    found = []
    first: dict[tuple[str, str], Prompt] = {}
    number: Counter[tuple[str, str]] = Counter()
    reported: dict[str, str] = {}
    for prompt in prompts:
        there = {"negative_prompt": prompt.negative, "media": prompt.media or None, "size": prompt.size}
        for pair in doubtful(prompt.metadata).items():
            if there[pair[1]] is None:
                first.setdefault(pair, prompt)
                number[pair] += 1
        for medium in prompt.media:
            if medium.digest not in reported:
                from dgpo_core.media.conditions import notes_of

                name = clean(medium.path, 300)
                reported[medium.digest] = f"{name}: {'; '.join(why)}" if (why := notes_of(medium)) else ""
    for (key, meant), prompt in first.items():
        where = f" (the first is {prompt.origin})" if prompt.origin else ""
        found.append(
            f"{number[key, meant]} of {len(prompts)} prompts have the key `{clean(key, 40)}`{where}, which is metadata "
            f"for rewards; what a sample is drawn from is called `{meant}`"
        )
    changed = [text for text in reported.values() if text]
    if changed:
        more = f"; so are {len(changed) - 1} other media" if len(changed) > 1 else ""
        found.append(f"media are not read quite as they are: {changed[0]}{more}")
    return found


def counted(found: Mapping[str, Any]) -> list[str]:
    """Describe the result of `counts`, or the same record in run.json, without the sources."""
    words = {"media": "with media", "negative_texts": "with a negative text", "sizes": "with a size of their own"}
    return [f"{found[key]} {text}" for key, text in words.items() if found.get(key)]


def guided(config: RunConfig) -> bool:
    """Return whether a run uses a guidance scale other than 1."""
    scales = (config.rollout.guidance, config.evaluation.guidance or 1.0, config.objective.kl_cfg)
    return any(scale != 1 for scale in scales)


def unheard(prompts: Sequence[Prompt], guided: bool) -> str | None:
    """A note with the number of prompts whose negative text nobody reads, because nothing is guided; None if there are
    none."""
    count = sum(bool(prompt.negative) for prompt in prompts)
    if guided or not count:
        return None
    first = next(prompt for prompt in prompts if prompt.negative)
    where = f" (the first is {first.origin})" if first.origin else ""
    return f"{count} of {len(prompts)} prompts have a negative text{where}, which is not read where guidance is 1"


def _folded(prompt: Prompt) -> Hashable:
    return " ".join(unicodedata.normalize("NFKC", prompt.text).casefold().split()), prompt.key[1]


def _share(part: int, whole: int) -> str:
    """Whole per cent, which 0 and 100 are only where nothing and everything is meant."""
    percent = round(100 * part / whole)
    if percent == 0:
        return "under 1 %"
    return "over 99 %" if percent == 100 and part < whole else f"{percent} %"
