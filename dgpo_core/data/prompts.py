"""Load the prompts of a run from a file or a generator, and select prompts for an evaluation.

Imports torch only when prompts are drawn at random, because `dgpo validate` uses this module.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from dgpo_core.data.checks import given, made
from dgpo_core.data.sources import Source, cut_to_shares, integer_weights
from dgpo_core.errors import UserError
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_schemas.base import UseBlock
from dgpo_schemas.prompts import PromptRecord, read_prompts, record_of

if TYPE_CHECKING:
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.prompts import PromptsBlock, PromptsSection

__all__ = [
    "PromptLike",
    "Prompts",
    "counts",
    "digest",
    "given_prompts",
    "load_file",
    "load_prompts",
    "load_sources",
    "some_of",
    "some_of_each",
    "typed",
]

PromptLike: TypeAlias = str | Prompt | Mapping[str, Any]
Prompts: TypeAlias = PromptLike | Sequence[PromptLike] | Path
"""Types that `given_prompts` accepts."""


def load_file(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """Load the first `limit` prompts of a .txt, .jsonl or .json file and check their media.

    Raises UserError naming file and line.
    """
    path = Path(path)
    try:
        records = read_prompts(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    # A pipe has no directory, so media paths are relative to the working directory.
    beside = Path() if str(path).startswith(("/dev/", "/proc/")) else path.parent
    return [_prompt(record, where, beside) for where, record in islice(records.items(), limit)]


def given_prompts(prompts: Prompts, name: str = "prompts") -> list[Prompt]:
    """Return the prompts of an argument of the Python API.

    prompts: a string, a `Prompt`, a dict with the keys of a prompt file, a list of these, or the `Path` of a prompt
    file. Paths of media are relative to the working directory. name: of the argument, for messages. Raises UserError
    naming the item, such as prompts[2].
    """
    if isinstance(prompts, Path):
        return load_file(prompts)
    if isinstance(prompts, str | Prompt | Mapping):
        return [_given(prompts, name)]
    if not isinstance(prompts, Sequence) or not prompts:
        what = "an empty list" if isinstance(prompts, Sequence) else type(prompts).__name__
        raise UserError(f"{name}: must be a text, a Prompt, a dict or a list of these, not {what}")
    return [_given(item, f"{name}[{number}]") for number, item in enumerate(prompts)]


def _given(item: object, where: str) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if not isinstance(item, str | Mapping):
        what = type(item).__name__
        raise UserError(f"{where}: must be a text, a Prompt, or a dict with the key `prompt`, not {what}")
    try:
        record = record_of({"prompt": item} if isinstance(item, str) else dict(item), where)
    except ValueError as error:
        raise UserError(str(error)) from error
    return _prompt(record, where, Path())


def _prompt(record: PromptRecord, where: str, beside: Path) -> Prompt:
    return Prompt(
        record.prompt,
        MappingProxyType(dict(record.metadata)),
        where,
        negative=record.negative_prompt,
        media=_media((beside / os.path.expanduser(text) for text in record.media), f"{where}: media"),
        size=record.size,
    )


def _media(paths: Iterable[Path], where: str) -> tuple[ConditionMedium, ...]:
    found = []
    for path in paths:
        from dgpo_core.media.conditions import condition_medium

        try:
            found.append(condition_medium(path))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return tuple(found)


def typed(texts: Sequence[str], negative: str | None, media: Sequence[Path]) -> list[Prompt]:
    """Return the prompts of a command line, each with the negative prompt and the media. Raises UserError."""
    if negative is not None:
        negative = given(negative, "--negative")
    found = _media(media, "--media")
    return [
        Prompt(given(text, f"--prompt {number}"), origin="--prompt", negative=negative, media=found)
        for number, text in enumerate(texts, 1)
    ]


def load_sources(section: PromptsSection, split: Literal["train", "heldout"], registry: Registry) -> list[Source]:
    """Load the prompts of a split by source; a split that is not a list has one source without a name.

    Raises UserError like `load_prompts`.
    """
    blocks = section.sources(split)
    if not blocks:
        loaded = [load_prompts(block, split, registry) for block in section.blocks(split)]
        return [Source("", 1, [replace(one, source="") if one.source else one for one in found]) for found in loaded]
    return [
        Source(
            block.source,
            weight,
            [replace(one, source=block.source) for one in load_prompts(block, split, registry, f"prompts.{split}.{i}")],
        )
        for i, (block, weight) in enumerate(zip(blocks, integer_weights(blocks), strict=True))
    ]


def load_prompts(
    block: PromptsBlock, split: Literal["train", "heldout"], registry: Registry, where: str | None = None
) -> list[Prompt]:
    """Load the prompts of a block. where: its key in the run file.

    Raises UserError if the file cannot be read or the source yields no prompts.
    """
    where = where or f"prompts.{split}"
    if block.file is not None:
        try:
            found = load_file(block.file, block.limit)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    else:
        assert block.use is not None
        source = registry.create("prompts", UseBlock(use=block.use, options=block.options))
        found = made(source, split, f"{where}: {block.use}")
    if not found:
        raise UserError(f"{where}: {block.use or block.file} yields no prompts")
    return found[: block.limit]


def some_of_each(sources: Sequence[Source], count: int) -> list[Prompt]:
    """Return at most `count` evaluation prompts, split over the sources by weight and drawn as in `some_of`."""
    if len(sources) == 1:
        return some_of(sources[0].prompts, count)
    per_source = cut_to_shares(sources, count)
    return [prompt for source, n in zip(sources, per_source, strict=True) for prompt in some_of(source.prompts, n)]


def some_of(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Draw at most `count` prompts at random, in their original order, because prompt files are often sorted by task.

    The draw does not depend on the run's seed, so that runs can be compared.
    """
    if len(prompts) <= count:
        return list(prompts)
    from dgpo_core.draws import Draws

    chosen = Draws(0).at("some of", len(prompts)).permutation(len(prompts))[:count]
    return [prompts[i] for i in chosen.sort().values.tolist()]


def digest(prompts: Sequence[Prompt]) -> str:
    """Return the SHA-256 of all texts, metadata, negative prompts, media, sizes and sources.

    Two runs with the same digest used the same prompts.
    """
    sha = hashlib.sha256()
    for prompt in prompts:
        content: list[Any] = [prompt.text, dict(prompt.metadata)]
        more = {
            "negative": prompt.negative,
            "media": [medium.digest for medium in prompt.media] or None,
            "size": prompt.size,
            "source": prompt.source or None,
        }
        if more := {key: value for key, value in more.items() if value is not None}:
            content.append(more)
        sha.update(json.dumps(content, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def counts(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Count the prompts with media, negative prompts and sizes, omitting zeros; `sources`: prompts per source."""
    found: dict[str, Any] = {
        "media": sum(bool(prompt.media) for prompt in prompts),
        "negative_texts": sum(prompt.negative is not None for prompt in prompts),
        "sizes": sum(prompt.size is not None for prompt in prompts),
        "sources": dict(Counter(prompt.source for prompt in prompts if prompt.source)),
    }
    return {key: value for key, value in found.items() if value}
