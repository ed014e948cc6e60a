"""Characters that an engine can recognize: a target with any other could never score 1. Does not import torch."""

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
"""PP-OCR's recognition models by script, with Unicode's script names."""
_NAMED = 3
"""Most characters that a message names."""


def readable(alphabet: Iterable[str]) -> frozenset[str]:
    """Return the characters of an alphabet in normalized form (`squeeze`)."""
    return frozenset("".join(squeeze(character) for character in alphabet))


def check_readable(target: str, letters: frozenset[str], reader: str) -> None:
    """Raise ValueError if a target has characters that are not `readable`.

    The message names the characters, and a model that recognizes them if one is known. reader: the engine's name for
    the message.
    """
    if letters.issuperset(squeeze(target)):
        return
    characters = dict.fromkeys(unicodedata.normalize("NFC", target))
    strange = [character for character in characters if not letters.issuperset(squeeze(character))]
    strange = strange or sorted(set(squeeze(target)) - letters)  # several characters that normalize to one
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
