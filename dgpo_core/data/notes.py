"""Warnings and notes about prompts: held-out prompts in the training set, truncated texts, misspelled keys.

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

__all__ = ["counted", "guided", "longer_than_read", "notes", "overlap", "shared_prompts", "unheard"]


def overlap(train: Sequence[Prompt], heldout: Sequence[Prompt], count: int) -> str | None:
    """Return a warning with the number of held-out prompts in the training set, or None if there are none.

    count: number of evaluation prompts, drawn by `some_of`. Prompts are compared without case, white space and Unicode
    normalization form, which text encoders partly ignore. Prompts with different media are different.
    """
    if not shared_prompts(train, heldout):
        return None  # avoids the import of torch in `some_of`
    drawn = some_of(heldout, count)
    shared = shared_prompts(train, drawn)
    if not shared:
        return None
    exact = {prompt.key[:2] for prompt in train}
    alike = sum(prompt.key[:2] not in exact for prompt in shared)
    first = shared[0]
    where = f" ({first.origin})" if first.origin else ""
    return (
        f"prompts.heldout: {len(shared)} of {len(drawn)} held-out prompts ({_percent(len(shared), len(drawn))}) are "
        f"also training prompts{f', {alike} of them except for case or spaces' if alike else ''}, the first is "
        f"{shown(first.text)}{where}; remove them from one of the two"
    )


def shared_prompts(train: Sequence[Prompt], others: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts of `others` that are also training prompts, compared as in `overlap`."""
    folded = {_folded(prompt) for prompt in train}
    return [prompt for prompt in others if _folded(prompt) in folded]


def longer_than_read(prompts: Sequence[Prompt], backbone: Backbone) -> str | None:
    """Return a warning with the number of prompts and negative prompts that the text encoders truncate, or None."""
    reported = [_longer(prompts, backbone, "prompts")]
    negative = [replace(prompt, text=prompt.negative) for prompt in prompts if prompt.negative]
    if negative and backbone.supports_guidance:
        reported.append(_longer(negative, backbone, "negative prompts"))
    return "; ".join(filter(None, reported)) or None


def _longer(prompts: Sequence[Prompt], backbone: Backbone, what: str) -> str | None:
    from dgpo_core.plugins import contract_checks  # imports torch, which takes a while

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
        f"{len(found)} of {len(prompts)} {what} {are} longer than the limit of the text encoders ({limit} tokens), the "
        f"first is {where}{shown(first.text)}: the rest of the text has no effect"
    )


def notes(prompts: Sequence[Prompt]) -> list[str]:
    """Return notes about prompts that may be read differently than intended.

    These are lines that look like comments, metadata keys that resemble keys of a prompt, and media of which reading
    drops something.
    """
    found = []
    first: dict[tuple[str, str], Prompt] = {}
    number: Counter[tuple[str, str]] = Counter()
    reported: dict[str, str] = {}
    for prompt in prompts:
        fields = {"negative_prompt": prompt.negative, "media": prompt.media or None, "size": prompt.size}
        for pair in doubtful(prompt.metadata).items():
            if fields[pair[1]] is None:
                first.setdefault(pair, prompt)
                number[pair] += 1
        for medium in prompt.media:
            if medium.digest not in reported:
                from dgpo_core.media.conditions import notes_of

                name = clean(medium.path, 300)
                reported[medium.digest] = f"{name}: {'; '.join(why)}" if (why := notes_of(medium)) else ""
    found += _comments(prompts)
    for (key, meant), prompt in first.items():
        where = f" (the first is {prompt.origin})" if prompt.origin else ""
        found.append(
            f"{number[key, meant]} of {len(prompts)} prompts have the key `{clean(key, 40)}`{where}, which is metadata "
            f"for rewards; use `{meant}` to condition the samples"
        )
    changed = [text for text in reported.values() if text]
    if changed:
        more = f"; and {len(changed) - 1} more" if len(changed) > 1 else ""
        found.append(f"some media are changed when they are read: {changed[0]}{more}")
    return found


def _comments(prompts: Sequence[Prompt]) -> list[str]:
    """A note about prompts that look like comments, which prompt files do not have."""
    like = [prompt for prompt in prompts if prompt.text.startswith(("# ", "//")) or set(prompt.text) == {"#"}]
    if not like:
        return []
    where = f" (the first is {like[0].origin}: {shown(like[0].text)})" if like[0].origin else ""
    return [
        f"{len(like)} of {len(prompts)} prompts look like comments{where}, but prompt files have none: every line with "
        "text is a prompt; delete these lines if they are not meant"
    ]


def counted(found: Mapping[str, Any]) -> list[str]:
    """Describe the result of `counts`, or the same record in run.json, without the sources."""
    words = {"media": "with media", "negative_texts": "with a negative prompt", "sizes": "with their own size"}
    return [f"{found[key]} {text}" for key, text in words.items() if found.get(key)]


def guided(config: RunConfig) -> bool:
    """Return whether a run uses a guidance scale other than 1."""
    scales = (config.rollout.guidance, config.evaluation.guidance or 1.0, config.objective.kl_cfg)
    return any(scale != 1 for scale in scales)


def unheard(prompts: Sequence[Prompt], guided: bool) -> str | None:
    """Return a note with the number of prompts whose negative prompt has no effect without guidance, or None."""
    count = sum(bool(prompt.negative) for prompt in prompts)
    if guided or not count:
        return None
    first = next(prompt for prompt in prompts if prompt.negative)
    where = f" (the first is {first.origin})" if first.origin else ""
    return f"{count} of {len(prompts)} prompts have a negative prompt{where}, which has no effect if guidance is 1"


def _folded(prompt: Prompt) -> Hashable:
    return " ".join(unicodedata.normalize("NFKC", prompt.text).casefold().split()), prompt.key[1]


def _percent(count: int, total: int) -> str:
    """Format a fraction as an integer percentage; 0 and 100 only if exact. count: at least 1."""
    percent = round(100 * count / total)
    if percent == 0:
        return "under 1 %"
    return "over 99 %" if percent == 100 and count < total else f"{percent} %"
