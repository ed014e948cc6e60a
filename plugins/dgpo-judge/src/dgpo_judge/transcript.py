"""What a judge reads in a picture, compared with what should be there as bags of words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_schemas.text import clean

__all__ = ["found_share", "target_of", "words"]

KEY = "target"
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""A character of Chinese or Japanese, or a run of other letters and digits."""


def target_of(prompt: Prompt) -> str:
    """Return the text that should be read: the prompt's metadata `target`. Raises UserError that names the prompt."""
    target = prompt.metadata.get(KEY)
    if isinstance(target, str) and words(target):
        return target
    raise UserError(
        f"{prompt.origin or 'prompt'}: {clean(prompt.text, 80)!r}: has no text to read, which `form: reading` needs; "
        f"give the prompt the key `{KEY}` with the text that should be in the picture"
    )


def words(text: str) -> Counter[str]:
    """Return the words of a text and how often each occurs, without punctuation, case and Unicode's variants (NFKC).

    Each Chinese or Japanese character is a word.
    """
    return Counter(_WORD.findall(unicodedata.normalize("NFKC", text.replace("'", "").replace("’", "")).casefold()))


def found_share(read: str, target: str) -> float:
    """Return the share of the target's words that were read, each as often as it occurs, in [0, 1]."""
    asked = words(target)
    return (asked & words(read)).total() / asked.total()
