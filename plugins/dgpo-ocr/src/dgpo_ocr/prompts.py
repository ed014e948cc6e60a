"""Prompts with a quoted text, split so that no word is in both splits.

The unit is an entry of the word list. Entries that share a word ("no entry", "no parking") form a family, and whole
families with a fifth of the words are held out. A hash of the words selects them, so neither the seed nor the counts
change the split. Both splits use the same sentences: held-out prompts test the spelling of new words.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Literal

from dgpo_core.contracts import PromptSource
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_ocr.normal import fold, squeeze
from dgpo_ocr.options import OcrPromptsOptions
from dgpo_ocr.target import target_of
from dgpo_ocr.words import SIGNS, TEMPLATES, WORDINGS, WORDS
from dgpo_schemas.decoding import EncodingError, decode
from dgpo_schemas.text import is_visible, lone_surrogate

__all__ = ["HELDOUT_SHARE", "OcrPrompts", "Split", "split_entries"]

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 0.2
"""Minimum fraction of the words that is held out."""


def split_entries(entries: Sequence[str]) -> dict[Split, list[str]]:
    """Split words and phrases, without duplicates and in order.

    Words that the reward cannot distinguish are duplicates: case and Unicode forms do not matter. Raises ValueError if
    nothing can be held out because all entries are connected by common words.
    """
    unique = list({" ".join(fold(entry).split()): entry for entry in reversed(entries)}.values())[::-1]
    families = _families(unique)
    if len(families) < 2:
        raise ValueError("the words cannot be split: every entry shares a word with another one")
    words = sum(len(family) for family in families)
    heldout: set[str] = set()
    for family in sorted(families, key=lambda family: hashlib.blake2b(min(family).encode()).digest())[:-1]:
        if len(heldout) >= HELDOUT_SHARE * words:
            break
        heldout |= family
    splits: dict[Split, list[str]] = {"train": [], "heldout": []}
    for entry in unique:
        splits["heldout" if fold(entry).split()[0] in heldout else "train"].append(entry)
    return splits


def _families(entries: Sequence[str]) -> list[set[str]]:
    """Group the normalized words of the entries: words that share an entry, directly or not, are in one set."""
    found: list[set[str]] = []
    for entry in entries:
        joined = set(fold(entry).split())
        apart = []
        for family in found:
            if family & joined:
                joined |= family
            else:
                apart.append(family)
        found = [*apart, joined]
    return found


class OcrPrompts(PromptSource):
    """The prompt source `ocr`. Prompts carry their text in the metadata key `target`."""

    options: OcrPromptsOptions

    def __init__(self, options: OcrPromptsOptions) -> None:
        """Read the words. Raises UserError, naming the entry, for an invalid list or file."""
        super().__init__(options)
        try:
            self.entries = split_entries(_entries(options.words))
        except ValueError as error:
            raise UserError(f"prompts 'ocr': {error}") from error

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Return the prompts of one split.

        They are deterministic given the options, and a smaller count returns a prefix of a larger one. Every entry is
        used once before any is used again.
        """
        count = self.options.train_count if split == "train" else self.options.heldout_count
        draws = Random(f"{split} {self.options.seed}")
        deck = _deck(self.entries[split], draws)
        return [self._prompt(draws, deck) for _ in range(count)]

    def reworded(self, prompts: Sequence[Prompt]) -> list[str | None]:
        """Return other sentences that ask for the same text; None for a prompt without a quoted text."""
        return [_reworded(prompt) for prompt in prompts]

    def _prompt(self, draws: Random, deck: Iterator[str]) -> Prompt:
        text = " ".join(next(deck) for _ in range(draws.randint(1, self.options.words_per_text)))
        target = draws.choice((str.upper, string.capwords, str))(text)
        return Prompt(draws.choice(TEMPLATES).format(target), MappingProxyType({"target": target}))


def _reworded(prompt: Prompt) -> str | None:
    """Return one of `WORDINGS`, which the text of the prompt selects, with its target."""
    try:
        target = target_of(prompt)
    except ValueError:
        return None
    choice = hashlib.sha256(prompt.text.encode()).digest()[0] % len(WORDINGS)
    return None if '"' in target else WORDINGS[choice].format(target)


def _deck(entries: Sequence[str], draws: Random) -> Iterator[str]:
    """Yield all entries in random order, then all again in another order, and so on."""
    while True:
        yield from draws.sample(entries, len(entries))


def _entries(words: list[str] | str | None) -> list[str]:
    """Return the entries of the options. Raises ValueError, naming the entry or the file, if they are invalid."""
    if words is None:
        return [*WORDS, *SIGNS]
    if isinstance(words, str):
        found = [(f"{words}:{number}", line) for number, line in enumerate(_lines(words), 1) if is_visible(line)]
    else:
        found = [(f"entry {number} of `words`", word) for number, word in enumerate(words, 1)]
    for where, entry in found:
        if not squeeze(entry):
            raise ValueError(f"{where} is empty")
        if set(entry) & set('"“”') or entry.rstrip().endswith("\\"):
            raise ValueError(
                f"{where}, {entry!r}, contains a double quote or ends in a backslash and cannot be quoted in a prompt"
            )
        if lone_surrogate(entry) is not None:
            raise ValueError(f"{where}, {entry!r}, contains a lone surrogate, which is not valid Unicode")
    return [entry.strip() for _, entry in found]


def _lines(path: str) -> list[str]:
    try:
        text = decode(Path(path).read_bytes())
    except EncodingError as error:
        raise ValueError(error.at(path)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line.strip().removeprefix("\ufeff") for line in re.split(r"\r*\n|\r", text)]
