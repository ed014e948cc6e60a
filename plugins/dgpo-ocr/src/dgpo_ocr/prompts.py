"""Prompts that ask for a text, split so that no word is in both splits.

The unit is an entry of the word list. Entries that share a word ("no entry", "no parking") belong together, and a fifth
of the words, whole such families, is held out: which, a hash of the words decides, so neither seed nor count moves one
from split to split. Sentences are the same in both: held-out prompts test the spelling of new words.
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
from dgpo_ocr.words import SIGNS, TEMPLATES, WORDS
from dgpo_schemas.decoding import EncodingError, decode
from dgpo_schemas.text import is_visible, lone_surrogate

__all__ = ["HELDOUT_SHARE", "OcrPrompts", "Split", "split_entries"]

Split = Literal["train", "heldout"]
HELDOUT_SHARE = 0.2
"""At least this share of the words is held out."""


def split_entries(entries: Sequence[str]) -> dict[Split, list[str]]:
    """Words and phrases, without those that repeat an earlier one, by split and in their order.

    Words that the reward cannot tell apart are the same: case does not matter, nor do Unicode's forms. Raises
    ValueError where nothing can be held out because all entries hang together.
    """
    unique = list({" ".join(fold(entry).split()): entry for entry in reversed(entries)}.values())[::-1]
    families = _families(unique)
    if len(families) < 2:
        raise ValueError("the words cannot be split: every entry shares a word with another")
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
    """The words of entries in the form in which they are compared; words that an entry joins, directly or by way of
    others, are in one set."""
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
        """Read the words. Raises UserError for a list or file that cannot be used, naming the entry."""
        super().__init__(options)
        try:
            self.entries = split_entries(_entries(options.words))
        except ValueError as error:
            raise UserError(f"prompts 'ocr': {error}") from error

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """The prompts of one split, always the same ones for the same options; a smaller count gives the beginning of
        a larger one. Every entry comes up once before one comes up again."""
        count = self.options.train_count if split == "train" else self.options.heldout_count
        draws = Random(f"{split} {self.options.seed}")
        deck = _deck(self.entries[split], draws)
        return [self._prompt(draws, deck) for _ in range(count)]

    def _prompt(self, draws: Random, deck: Iterator[str]) -> Prompt:
        text = " ".join(next(deck) for _ in range(draws.randint(1, self.options.words_per_text)))
        target = draws.choice((str.upper, string.capwords, str))(text)
        return Prompt(draws.choice(TEMPLATES).format(target), MappingProxyType({"target": target}))


def _deck(entries: Sequence[str], draws: Random) -> Iterator[str]:
    """All entries in random order, then all again in another, and so on."""
    while True:
        yield from draws.sample(entries, len(entries))


def _entries(words: list[str] | str | None) -> list[str]:
    """The entries that the options give. Raises ValueError naming an entry that cannot be quoted, or the file."""
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
                f"{where}, {entry!r}, has a double quote or ends in a backslash, which cannot be quoted in a prompt"
            )
        if lone_surrogate(entry) is not None:
            raise ValueError(f"{where}, {entry!r}, has half of a character (a lone surrogate)")
    return [entry.strip() for _, entry in found]


def _lines(path: str) -> list[str]:
    try:
        text = decode(Path(path).read_bytes())
    except EncodingError as error:
        raise ValueError(error.at(path)) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [line.strip().removeprefix("\ufeff") for line in re.split(r"\r*\n|\r", text)]
