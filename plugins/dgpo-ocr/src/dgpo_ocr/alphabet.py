"""Which letters a reader has: a target with one that it cannot give back would never be worth 1. Light: no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from dgpo_ocr.normal import squeeze

__all__ = ["check_readable", "readable"]

_MODELS = {
    "ARABIC": "arabic_PP-OCRv5_mobile_rec",
    "CYRILLIC": "cyrillic_PP-OCRv5_mobile_rec",
    "DEVANAGARI": "devanagari_PP-OCRv5_mobile_rec",
    "GREEK": "el_PP-OCRv5_mobile_rec",
    "HANGUL": "korean_PP-OCRv5_mobile_rec",
    "LATIN": "latin_PP-OCRv5_mobile_rec",
    "TAMIL": "ta_PP-OCRv5_mobile_rec",
    "TELUGU": "te_PP-OCRv5_mobile_rec",
    "THAI": "th_PP-OCRv5_mobile_rec",
}
"""PP-OCR's recognition models by the script they are for, as Unicode names it."""
_NAMED = 3
"""Characters that a message names."""


def readable(alphabet: Iterable[str]) -> frozenset[str]:
    """The characters that texts of an alphabet have in the form in which they are compared."""
    return frozenset("".join(squeeze(character) for character in alphabet))


def check_readable(target: str, letters: frozenset[str], reader: str) -> None:
    """Raise ValueError naming the characters of a target that are not among the `readable` ones, and a model that has
    them where one is known. `reader` is who cannot read them."""
    if letters.issuperset(squeeze(target)):
        return
    characters = dict.fromkeys(unicodedata.normalize("NFC", target))
    strange = [character for character in characters if not letters.issuperset(squeeze(character))]
    strange = strange or sorted(set(squeeze(target)) - letters)  # of several characters that become one
    named = ", ".join(_name(character) for character in strange[:_NAMED])
    more = f" and {len(strange) - _NAMED} more" if len(strange) > _NAMED else ""
    scripts = dict.fromkeys(unicodedata.name(character, "?").split()[0] for character in strange)
    models = [f"PP-OCR's {_MODELS[script]} is for {script.title()}" for script in scripts if script in _MODELS]
    hint = f" ({'; '.join(models)}: see `recognition_model`)" if models else ""
    raise ValueError(f"asks for {named}{more}, which {reader} cannot read{hint}")


def _name(character: str) -> str:
    shown = repr(character)
    name = unicodedata.name(character, "")
    return f"{shown} (U+{ord(character):04X}{', ' + name if name else ''})"
