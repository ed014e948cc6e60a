"""Prompts of a run: from a file or a generator, and which of them an iteration takes.

Light: `dgpo validate` reads prompts with it, so torch comes with the first draw.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from dgpo_core.data.sources import Source, cut_to_shares, whole_weights
from dgpo_core.errors import DgpoError, UserError
from dgpo_core.plugins.isolation import ctrl_c, no_exit, told
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_schemas.base import LONGEST_SIDE, UseBlock
from dgpo_schemas.decoding import half_character
from dgpo_schemas.prompt_keys import doubtful
from dgpo_schemas.prompts import read_prompts
from dgpo_schemas.text import clean, error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone, PromptSource, RewardBase
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.run import RunConfig
    from dgpo_schemas.sections.prompts import PromptsBlock, PromptsSection

__all__ = [
    "check_prompts",
    "counted",
    "counts",
    "digest",
    "given",
    "guided",
    "load_file",
    "load_prompts",
    "load_sources",
    "longer_than_read",
    "notes",
    "overlap",
    "some_of",
    "some_of_each",
    "typed",
    "unheard",
]

MOST = 10_000_000
"""Prompts that a source may yield; a generator that never ends would be no list."""
FASTEST = 1_000_000
"""Frames a second."""
SHOWN = 60
"""Characters of a prompt in a message."""


def load_file(path: str | Path, limit: int | None = None) -> list[Prompt]:
    """Prompts of a .txt, .jsonl or .json file, the first `limit` of them, whose media are looked at. Raises UserError
    naming file and line."""
    path = Path(path)
    try:
        records = read_prompts(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    # What comes through a pipe lies beside no file.
    beside = Path() if str(path).startswith(("/dev/", "/proc/")) else path.parent
    return [
        Prompt(
            record.prompt,
            MappingProxyType(dict(record.metadata)),
            where,
            negative=record.negative_prompt,
            media=_media(record.media, beside, where) if record.media else (),
            size=record.size,
        )
        for where, record in islice(records.items(), limit)
    ]


def _media(paths: Sequence[str], beside: Path, where: str) -> tuple[ConditionMedium, ...]:
    from dgpo_core.media.conditions import condition_medium

    found = []
    for text in paths:
        try:
            found.append(condition_medium(beside / os.path.expanduser(text)))
        except UserError as error:
            raise UserError(f"{where}: media: {error}") from error
    return tuple(found)


def given(text: str, where: str) -> str:
    """A text that somebody typed, such as a prompt on the command line. Raises UserError, which begins with `where`, if
    it is no valid text: bytes that are not UTF-8, halves of characters."""
    reason = half_character(text)
    if reason:
        raise UserError(f"{where}: {reason}")
    return text


def typed(texts: Sequence[str], negative: str | None, media: Sequence[Path]) -> list[Prompt]:
    """Prompts of a command line, each with the negative text and the media. Raises UserError naming the option."""
    if negative is not None:
        negative = given(negative, "--negative")
    found = []
    if media:
        from dgpo_core.media.conditions import condition_medium

        for path in media:
            try:
                found.append(condition_medium(path))
            except UserError as error:
                raise UserError(f"--media: {error}") from error
    return [
        Prompt(given(text, f"--prompt {number}"), origin="--prompt", negative=negative, media=tuple(found))
        for number, text in enumerate(texts, 1)
    ]


def check_prompts(model: RewardBase | Backbone, prompts: Sequence[Prompt]) -> None:
    """Have a reward, or the backbone, check its prompts. Raises its UserError, with file and line of the first prompt
    that it refuses.

    The prompt is found by halving, so that a reward behind a service is not asked about each of thousands.
    """
    try:
        _ask(model, prompts)
        return
    except UserError as error:
        refused = error
    good, bad = 0, len(prompts)  # the first `good` prompts pass, the first `bad` do not
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _ask(model, prompts[good:middle])
            good = middle
        except UserError as error:
            bad, refused = middle, error
    origin = prompts[good].origin if prompts else ""
    told = str(refused)
    raise UserError(f"{origin}: {told}" if origin and not told.startswith(f"{origin}: ") else told) from refused


def _ask(model: RewardBase | Backbone, prompts: Sequence[Prompt]) -> None:
    """Raises UserError also where the reward fails at it."""
    with ctrl_c() as pressed, no_exit():
        try:
            model.check_prompts(prompts)
        except DgpoError:
            raise
        except BaseException as error:
            if pressed():
                raise
            raise UserError(f"{type(model).__name__} failed at checking the prompts: {told(error)}") from error


def load_sources(section: PromptsSection, split: Literal["train", "heldout"], registry: Registry) -> list[Source]:
    """The prompts of a split by source, of which there is one, without a name, where the split is no list. Raises
    UserError like `load_prompts`."""
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
        for i, (block, weight) in enumerate(zip(blocks, whole_weights(blocks), strict=True))
    ]


def load_prompts(
    block: PromptsBlock, split: Literal["train", "heldout"], registry: Registry, where: str | None = None
) -> list[Prompt]:
    """The prompts a block names; where: its place in the run file. Raises UserError for a file that cannot be read or a
    source that yields nothing."""
    where = where or f"prompts.{split}"
    if block.file is not None:
        try:
            found = load_file(block.file, block.limit)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    else:
        assert block.use is not None
        source = registry.create("prompts", UseBlock(use=block.use, options=block.options))
        found = _made(source, split, f"{where}: {block.use}")
    if not found:
        raise UserError(f"{where}: {block.use or block.file} yields no prompts")
    return found[: block.limit]


def some_of_each(sources: Sequence[Source], count: int) -> list[Prompt]:
    """At most `count` prompts for an evaluation, of several sources by their weights, drawn as `some_of` draws."""
    if len(sources) == 1:
        return some_of(sources[0].prompts, count)
    shares = cut_to_shares(sources, count)
    return [prompt for one, share in zip(sources, shares, strict=True) for prompt in some_of(one.prompts, share)]


def _made(source: PromptSource, split: Literal["train", "heldout"], where: str) -> list[Prompt]:
    """What a source yields. Raises UserError for what it throws, and for what are no prompts."""
    with ctrl_c() as pressed, no_exit():
        try:
            found = list(islice(source.prompts(split), MOST + 1))
        except UserError as error:
            raise UserError(f"{where.partition(': ')[0]}: {error}") from error
        except DgpoError:
            raise
        except BaseException as error:  # some libraries exit where others raise
            if pressed():
                raise
            raise UserError(f"{where} failed with {told(error)}") from error
    if len(found) > MOST:
        raise UserError(f"{where} yields more than {MOST:,} prompts")
    looked_at: dict[str, ConditionMedium] = {}
    for number, prompt in enumerate(found):
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
            raise UserError(f"{where}: its prompt {number} is {type(prompt).__name__}, not a Prompt with a text")
        if half_character(prompt.text):
            given(prompt.text, f"{where} yields {_shown(prompt.text)}, which")
        try:
            json.dumps(dict(prompt.metadata), default=str, skipkeys=True)  # nothing that contains itself
        except Exception as error:
            raise UserError(f"{where}: the metadata of its prompt {number}: {error_text(error)}") from error
        plain = prompt.negative is None and prompt.size is None and prompt.fps is None
        if not plain or prompt.media != ():
            media = _check_drawn_from(prompt, f"{where}: its prompt {number}", looked_at)
            if any(medium.reader is None for medium in prompt.media):
                found[number] = replace(prompt, media=media)
    return found


def _check_drawn_from(prompt: Prompt, where: str, looked_at: dict[str, ConditionMedium]) -> tuple[ConditionMedium, ...]:
    """Raise UserError for what a source says that a sample is drawn from beside the text, if it cannot be. Returns the
    media, which can be read."""
    negative, size, media = prompt.negative, prompt.size, prompt.media
    if negative is not None and (not isinstance(negative, str) or "\0" in negative or half_character(negative)):
        raise UserError(f"{where}: `negative` must be a text or None, not {_shown(repr(negative))}")
    fits = isinstance(size, tuple) and len(size) == 2 and all(type(n) is int and 1 <= n <= LONGEST_SIDE for n in size)
    if size is not None and not fits:
        raise UserError(f"{where}: `size` must be (height, width) in pixels or None, not {_shown(repr(size))}")
    fps = prompt.fps
    if fps is not None and not (type(fps) in (int, float) and 0 < fps <= FASTEST):
        raise UserError(f"{where}: `fps` must be a number of frames a second or None, not {_shown(repr(fps))}")
    if not isinstance(media, tuple) or not all(isinstance(medium, ConditionMedium) for medium in media):
        raise UserError(f"{where}: `media` must be a tuple of ConditionMedium, not {_shown(repr(media))}")
    for medium in media:
        if not isinstance(medium.digest, str) or not re.fullmatch("[0-9a-f]{64}", medium.digest):
            raise UserError(
                f"{where}: the digest of a medium is its SHA-256, 64 hexadecimal digits, not "
                f"{_shown(repr(medium.digest))}; dgpo_core.media.conditions.condition_medium makes one of a path or of "
                "bytes"
            )
        if medium.content is None and not medium.path:
            raise UserError(f"{where}: a medium has neither a path nor its content")
        key = f"{medium.kind} {medium.digest} {medium.path}"
        if key in looked_at:
            continue
        from dgpo_core.media.conditions import checked_medium

        try:
            looked_at[key] = checked_medium(medium)
        except UserError as error:
            raise UserError(f"{where}: media: {error}") from error
    return tuple(looked_at[f"{medium.kind} {medium.digest} {medium.path}"] for medium in media)


def some_of(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """At most `count` prompts, in their order: drawn at random, because prompt files are often sorted by task. Always
    the same ones, so that runs of any seed can be compared."""
    if len(prompts) <= count:
        return list(prompts)
    from dgpo_core.draws import Draws

    chosen = Draws(0).at("some of", len(prompts)).permutation(len(prompts))[:count]
    return [prompts[i] for i in chosen.sort().values.tolist()]


def overlap(train: Sequence[Prompt], heldout: Sequence[Prompt], count: int) -> str | None:
    """A warning with the number of held-out prompts that are trained on, of the `count` that `some_of` evaluates; None
    if there are none.

    Case, white space and the ways in which Unicode writes a letter make no other prompt: text encoders fold some of
    them, and a text that differs in nothing else tests nothing new. Another picture to edit does.
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
        f"training prompts too{f', {alike} of them but for case or spaces' if alike else ''}, the first is "
        f"{_shown(first.text)}{where}: evaluation then measures what was trained on; take them out of one of the two"
    )


def longer_than_read(prompts: Sequence[Prompt], backbone: Backbone) -> str | None:
    """A warning with the number of prompts, and of negative texts, whose end the backbone's text encoders do not see;
    None if there are none."""
    told = [_longer(prompts, backbone, "prompts", "the model does not see what follows")]
    negative = [replace(prompt, text=prompt.negative) for prompt in prompts if prompt.negative]
    if negative and backbone.guidable:
        told.append(_longer(negative, backbone, "negative texts", "nothing is led away from what follows"))
    return "; ".join(filter(None, told)) or None


def _longer(prompts: Sequence[Prompt], backbone: Backbone, what: str, so: str) -> str | None:
    from dgpo_core.plugins import promises  # with torch, which takes a while to import

    different = list({prompt.key: prompt for prompt in prompts}.values())
    unread, limit = promises.unread(backbone, different)
    if not unread:
        return None
    long = {different[i].key for i in unread}
    found = [prompt for prompt in prompts if prompt.key in long]
    first = found[0]
    where = f"{first.origin}, " if first.origin else ""
    are = "is" if len(found) == 1 else "are"
    return (
        f"{len(found)} of {len(prompts)} {what} {are} longer than the text encoders read ({limit} tokens), the first "
        f"is {where}{_shown(first.text)}: {so}"
    )


def _folded(prompt: Prompt) -> Hashable:
    return " ".join(unicodedata.normalize("NFKC", prompt.text).casefold().split()), prompt.key[1]


def _share(part: int, whole: int) -> str:
    """Whole per cent, which 0 and 100 are only where nothing and everything is meant."""
    percent = round(100 * part / whole)
    if percent == 0:
        return "under 1 %"
    return "over 99 %" if percent == 100 and part < whole else f"{percent} %"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of texts and metadata, and of negative texts, media, sizes and sources where there are some: two runs
    with the same digest saw the same prompts."""
    sha = hashlib.sha256()
    for prompt in prompts:
        told: list[Any] = [prompt.text, dict(prompt.metadata)]
        more = {
            "negative": prompt.negative,
            "media": [medium.digest for medium in prompt.media] or None,
            "size": prompt.size,
            "source": prompt.source or None,
        }
        if more := {key: value for key, value in more.items() if value is not None}:
            told.append(more)
        sha.update(json.dumps(told, sort_keys=True, default=str).encode())
    return sha.hexdigest()


def counts(prompts: Sequence[Prompt]) -> dict[str, Any]:
    """How many prompts say what else they are drawn from, without what none of them says; `sources`: how many each list
    has."""
    found: dict[str, Any] = {
        "media": sum(bool(prompt.media) for prompt in prompts),
        "negative_texts": sum(prompt.negative is not None for prompt in prompts),
        "sizes": sum(prompt.size is not None for prompt in prompts),
        "sources": dict(Counter(prompt.source for prompt in prompts if prompt.source)),
    }
    return {key: value for key, value in found.items() if value}


def counted(found: Mapping[str, Any]) -> list[str]:
    """What `counts` has found, or run.json says of the prompts of a split, in words, without the sources."""
    words = {"media": "with media", "negative_texts": "with a negative text", "sizes": "with a size of their own"}
    return [f"{found[key]} {said}" for key, said in words.items() if found.get(key)]


def notes(prompts: Sequence[Prompt]) -> list[str]:
    """What may be meant otherwise than it is read: keys of metadata that are nearly keys of their own, and media of
    which reading leaves something out."""
    found = []
    first: dict[tuple[str, str], Prompt] = {}
    number: Counter[tuple[str, str]] = Counter()
    told: dict[str, str] = {}
    for prompt in prompts:
        there = {"negative_prompt": prompt.negative, "media": prompt.media or None, "size": prompt.size}
        for pair in doubtful(prompt.metadata).items():
            if there[pair[1]] is None:
                first.setdefault(pair, prompt)
                number[pair] += 1
        for medium in prompt.media:
            if medium.digest not in told:
                from dgpo_core.media.conditions import notes_of

                name = clean(medium.path, 300)
                told[medium.digest] = f"{name}: {'; '.join(why)}" if (why := notes_of(medium)) else ""
    for (key, meant), prompt in first.items():
        where = f" (the first is {prompt.origin})" if prompt.origin else ""
        found.append(
            f"{number[key, meant]} of {len(prompts)} prompts have the key `{clean(key, 40)}`{where}, which is metadata "
            f"for rewards; what a sample is drawn from is called `{meant}`"
        )
    changed = [text for text in told.values() if text]
    if changed:
        more = f"; so are {len(changed) - 1} other media" if len(changed) > 1 else ""
        found.append(f"media are not read quite as they are: {changed[0]}{more}")
    return found


def guided(config: RunConfig) -> bool:
    """Whether there is a place in a run where guidance is not 1."""
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
