"""Prompts of a run: from a file or a generator, and which of them an iteration takes.

Light: `dgpo validate` reads prompts with it, so torch comes with the first draw.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from dgpo_core.errors import DgpoError, UserError
from dgpo_core.isolation import ctrl_c, no_exit, told
from dgpo_core.types import Prompt
from dgpo_schemas.base import UseBlock
from dgpo_schemas.decoding import half_character
from dgpo_schemas.prompts import read_prompts
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import Backbone, PromptSource, RewardModel
    from dgpo_core.draws import Draws
    from dgpo_core.registry import Registry
    from dgpo_schemas.run import PromptsBlock

__all__ = [
    "check_prompts",
    "digest",
    "given",
    "load_file",
    "load_prompts",
    "longer_than_read",
    "of_iteration",
    "overlap",
    "some_of",
]

MOST = 10_000_000
"""Prompts that a source may yield; a generator that never ends would be no list."""
SHOWN = 60
"""Characters of a prompt in a message."""


def load_file(path: str | Path) -> list[Prompt]:
    """Prompts of a .txt, .jsonl or .json file. Raises UserError naming file and line."""
    try:
        records = read_prompts(Path(path))
    except ValueError as error:
        raise UserError(str(error)) from error
    return [Prompt(record.prompt, MappingProxyType(dict(record.metadata)), where) for where, record in records.items()]


def given(text: str, where: str) -> str:
    """A text that somebody typed, such as a prompt on the command line. Raises UserError, which begins with `where`, if
    it is no valid text: bytes that are not UTF-8, halves of characters."""
    reason = half_character(text)
    if reason:
        raise UserError(f"{where}: {reason}")
    return text


def check_prompts(model: RewardModel, prompts: Sequence[Prompt]) -> None:
    """Have a reward check its prompts. Raises its UserError, with file and line of the first prompt that it refuses.

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
    raise UserError(f"{origin}: {refused}" if origin else str(refused)) from refused


def _ask(model: RewardModel, prompts: Sequence[Prompt]) -> None:
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


def load_prompts(block: PromptsBlock, split: Literal["train", "heldout"], registry: Registry) -> list[Prompt]:
    """The prompts a block names. Raises UserError for a file that cannot be read or a source that yields nothing."""
    if block.file is not None:
        try:
            found = load_file(block.file)
        except UserError as error:
            raise UserError(f"prompts.{split}: {error}") from error
    else:
        assert block.use is not None
        source = registry.create("prompts", UseBlock(use=block.use, options=block.options))
        found = _made(source, split, f"prompts.{split}: {block.use}")
    if not found:
        raise UserError(f"prompts.{split}: {block.use or block.file} yields no prompts")
    return found[: block.limit]


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
    for number, prompt in enumerate(found):
        if not isinstance(prompt, Prompt) or not isinstance(prompt.text, str):
            raise UserError(f"{where}: its prompt {number} is {type(prompt).__name__}, not a Prompt with a text")
        if half_character(prompt.text):
            given(prompt.text, f"{where} yields {_shown(prompt.text)}, which")
        try:
            json.dumps(dict(prompt.metadata), default=str, skipkeys=True)  # nothing that contains itself
        except Exception as error:
            raise UserError(f"{where}: the metadata of its prompt {number}: {error_text(error)}") from error
    return found


def of_iteration(prompts: Sequence[Prompt], iteration: int, groups: int, draws: Draws) -> list[Prompt]:
    """The prompts of an iteration (from 0): every prompt once per pass, in an order keyed by the pass."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, place = divmod(position, len(prompts))
        if epoch not in orders:
            orders[epoch] = draws.at(epoch).permutation(len(prompts)).tolist()
        chosen.append(prompts[orders[epoch][place]])
    return chosen


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
    them, and a text that differs in nothing else tests nothing new.
    """
    exact, folded = {prompt.text for prompt in train}, {_folded(prompt.text) for prompt in train}
    if not any(_folded(prompt.text) in folded for prompt in heldout):
        return None  # without drawing any
    drawn = some_of(heldout, count)
    shared = [prompt for prompt in drawn if _folded(prompt.text) in folded]
    if not shared:
        return None
    alike = sum(prompt.text not in exact for prompt in shared)
    first = shared[0]
    where = f" ({first.origin})" if first.origin else ""
    return (
        f"prompts.heldout: {len(shared)} of {len(drawn)} held-out prompts ({_share(len(shared), len(drawn))}) are "
        f"training prompts too{f', {alike} of them but for case or spaces' if alike else ''}, the first is "
        f"{_shown(first.text)}{where}: evaluation then measures what was trained on; take them out of one of the two"
    )


def longer_than_read(prompts: Sequence[Prompt], backbone: Backbone) -> str | None:
    """A warning with the number of prompts whose end the backbone's text encoders do not see; None if there are
    none."""
    different = list({prompt.text: prompt for prompt in prompts}.values())
    unread, limit = backbone.unread(different)
    if not unread:
        return None
    long = {different[i].text for i in unread}
    found = [prompt for prompt in prompts if prompt.text in long]
    first = found[0]
    where = f"{first.origin}, " if first.origin else ""
    are = "is" if len(found) == 1 else "are"
    return (
        f"{len(found)} of {len(prompts)} prompts {are} longer than the text encoders read ({limit} tokens), the first "
        f"is {where}{_shown(first.text)}: the model does not see what follows"
    )


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _share(part: int, whole: int) -> str:
    """Whole per cent, which 0 and 100 are only where nothing and everything is meant."""
    percent = round(100 * part / whole)
    if percent == 0:
        return "under 1 %"
    return "over 99 %" if percent == 100 and part < whole else f"{percent} %"


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…")


def digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of texts and metadata: two runs with the same digest saw the same prompts."""
    sha = hashlib.sha256()
    for prompt in prompts:
        sha.update(json.dumps([prompt.text, dict(prompt.metadata)], sort_keys=True, default=str).encode())
    return sha.hexdigest()
