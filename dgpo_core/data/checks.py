"""Validate prompts: texts of the command line, prompts of generators, and prompts for the backbone and the rewards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

from dgpo_core.errors import DgpoError, UserError
from dgpo_core.plugins.isolation import ctrl_c, no_exit, reported
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.decoding import half_character
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone, PromptSource, RewardBase, Suite
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["check_prompts", "check_suite", "given", "made", "shown"]

MOST = 10_000_000
"""Maximum number of prompts of a source; limits a generator that never ends."""
FASTEST = 1_000_000
"""Maximum frame rate in frames per second."""
SHOWN = 60
"""Maximum number of characters of a prompt in a message."""


def given(text: str, where: str) -> str:
    """Return a text that a user typed, such as a prompt on the command line, if it is valid.

    Raises UserError, which starts with `where`, for bytes that are not UTF-8 and for lone surrogates.
    """
    reason = half_character(text)
    if reason:
        raise UserError(f"{where}: {reason}")
    return text


def check_prompts(model: RewardBase | Backbone, prompts: Sequence[Prompt]) -> None:
    """Have a reward or the backbone check prompts.

    Raises its UserError, with file and line of the first prompt that it rejects. Finds that prompt by bisection, to
    limit the number of requests to a reward service.
    """
    try:
        _check(model, prompts)
        return
    except UserError as error:
        rejected = error
    good, bad = 0, len(prompts)  # the first `good` prompts pass, the first `bad` do not
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _check(model, prompts[good:middle])
            good = middle
        except UserError as error:
            bad, rejected = middle, error
    origin = prompts[good].origin if prompts else ""
    message = str(rejected)
    raise UserError(
        f"{origin}: {message}" if origin and not message.startswith(f"{origin}: ") else message
    ) from rejected


def _check(model: RewardBase | Backbone, prompts: Sequence[Prompt]) -> None:
    """Call `model.check_prompts`. Raises UserError also if it fails with another exception."""
    with ctrl_c() as pressed, no_exit():
        try:
            model.check_prompts(prompts)
        except DgpoError:
            raise
        except BaseException as error:
            if pressed():
                raise
            raise UserError(f"{type(model).__name__} failed to check the prompts: {reported(error)}") from error


def made(source: PromptSource, split: Literal["train", "heldout"], where: str) -> list[Prompt]:
    """Return the prompts of a source. Raises UserError for its exceptions and for items that are not valid prompts."""
    return _checked(lambda: source.prompts(split), where)


def check_suite(suite: Suite, where: str) -> tuple[list[Prompt], list[RewardBlock]]:
    """Return the prompts and the rewards of a suite. Raises UserError as `made`, if it has none of either, or if it
    transforms or weights rewards."""
    prompts = _checked(suite.prompts, where)
    blocks = list(suite.rewards())
    if not prompts or not blocks:
        raise UserError(f"{where} has no {'rewards' if prompts else 'prompts'}")
    for block in blocks:
        if block.transform is not None:
            raise UserError(f"{where}: reward {block.label}: a suite aggregates scores by itself; remove `transform`")
        if block.weight != 1:
            raise UserError(f"{where}: reward {block.label}: a suite aggregates scores by itself; remove `weight`")
    return prompts, blocks


def _checked(source: Callable[[], Sequence[Prompt]], where: str) -> list[Prompt]:
    """Call a plugin's function and check the prompts that it returns."""
    with ctrl_c() as pressed, no_exit():
        try:
            found = list(islice(source(), MOST + 1))
        except UserError as error:
            raise UserError(f"{where.partition(': ')[0]}: {error}") from error
        except DgpoError:
            raise
        except BaseException as error:  # some libraries call exit
            if pressed():
                raise
            raise UserError(f"{where} failed with {reported(error)}") from error
    if len(found) > MOST:
        raise UserError(f"{where} yields more than {MOST:,} prompts")
    checked: dict[str, ConditionMedium] = {}
    for number, prompt in enumerate(found):
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
            raise UserError(f"{where}: prompt {number} is a {type(prompt).__name__}, not a Prompt with a text")
        if half_character(prompt.text):
            given(prompt.text, f"{where} yields {shown(prompt.text)}, which")
        try:
            json.dumps(dict(prompt.metadata), default=str, skipkeys=True)  # fails if it contains itself
        except Exception as error:
            raise UserError(f"{where}: metadata of prompt {number}: {error_text(error)}") from error
        plain = prompt.negative is None and prompt.size is None and prompt.fps is None
        if not plain or prompt.media != ():
            media = _check_conditions(prompt, f"{where}: prompt {number}", checked)
            if any(medium.reader is None for medium in prompt.media):
                found[number] = replace(prompt, media=media)
    return found


def _check_conditions(prompt: Prompt, where: str, checked: dict[str, ConditionMedium]) -> tuple[ConditionMedium, ...]:
    """Check the negative prompt, size, frame rate and media of a prompt. Returns the media, which can be read.

    checked: media checked so far, to which this adds. Raises UserError.
    """
    negative, size, media = prompt.negative, prompt.size, prompt.media
    if negative is not None and (not isinstance(negative, str) or "\0" in negative or half_character(negative)):
        raise UserError(f"{where}: `negative` must be a text or None, not {shown(repr(negative))}")
    fits = isinstance(size, tuple) and len(size) == 2 and all(type(n) is int and 1 <= n <= LONGEST_SIDE for n in size)
    if size is not None and not fits:
        raise UserError(f"{where}: `size` must be (height, width) in pixels or None, not {shown(repr(size))}")
    fps = prompt.fps
    if fps is not None and not (type(fps) in (int, float) and 0 < fps <= FASTEST):
        raise UserError(f"{where}: `fps` must be a number of frames per second or None, not {shown(repr(fps))}")
    if not isinstance(media, tuple) or not all(isinstance(medium, ConditionMedium) for medium in media):
        raise UserError(f"{where}: `media` must be a tuple of ConditionMedium, not {shown(repr(media))}")
    for medium in media:
        if not isinstance(medium.digest, str) or not re.fullmatch("[0-9a-f]{64}", medium.digest):
            raise UserError(
                f"{where}: the digest of a medium must be its SHA-256, 64 hexadecimal digits, not "
                f"{shown(repr(medium.digest))}; use dgpo_core.media.conditions.condition_medium to create a medium "
                "from a path or from bytes"
            )
        if medium.content is None and not medium.path:
            raise UserError(f"{where}: a medium has neither a path nor its content")
        key = f"{medium.kind} {medium.digest} {medium.path}"
        if key in checked:
            continue
        from dgpo_core.media.conditions import checked_medium

        try:
            checked[key] = checked_medium(medium)
        except UserError as error:
            raise UserError(f"{where}: media: {error}") from error
    return tuple(checked[f"{medium.kind} {medium.digest} {medium.path}"] for medium in media)


def shown(text: str) -> str:
    """Return the repr of a prompt for a message, shortened to `SHOWN` characters."""
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")
