"""The keys of a prompt that are no metadata: what a sample is drawn from beside its text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from dgpo_schemas.base import LONGEST_SIDE
from dgpo_schemas.decoding import half_character
from dgpo_schemas.problems import is_number, show
from dgpo_schemas.text import clean, is_visible

__all__ = ["KEYS", "MOST_MEDIA", "doubtful", "media_of", "misspelled", "negative_of", "size_of"]

KEYS = ("prompt", "negative_prompt", "media", "size")
"""Every other key is metadata."""
MOST_MEDIA = 64
"""Images and videos of one prompt."""
ADDRESS = re.compile(r"(data:|[A-Za-z][A-Za-z0-9+.-]+://)")
IMAGES = {
    "image", "imagepath", "imagefile", "inputimage", "sourceimage", "srcimage", "initimage", "referenceimage",
    "refimage", "conditionimage", "conditioningimage", "controlimage", "editimage", "startimage", "firstframe",
    "video", "videopath", "videofile", "inputvideo", "sourcevideo",
}  # fmt: skip
"""Keys under which other tools keep what a sample is conditioned on, or what the prompt is the caption of."""
SIZES = {"resolution", "imagesize", "heightwidth"}


def negative_of(value: Any) -> str | None:
    """The text that guidance leads away from; "" is one, null is none. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"`negative_prompt` must be a text, not {show(value)}")
    if "\0" in value:
        raise ValueError("`negative_prompt` holds a zero character, which no prompt does")
    return value


def size_of(value: Any) -> tuple[int, int] | None:
    """(height, width) in pixels. Numbers may be written as 512.0 and lists as JSON in a text, as tables write them.
    Raises ValueError."""
    if value is None:
        return None
    found = _listed(value)
    sides = [found, found] if not isinstance(found, list) else found
    if len(sides) == 2 and all(_is_side(side) for side in sides):
        return int(sides[0]), int(sides[1])
    large = (
        f"; a side has {LONGEST_SIDE} at most" if any(is_number(one) and one > LONGEST_SIDE for one in sides) else ""
    )
    raise ValueError(
        f"`size` must be a side in pixels or [height, width], such as 512 or [480, 832], not {_shown(value)}"
        f"{_size_meant(value)}{large}; metadata needs another key"
    )


def _is_side(value: Any) -> bool:
    return is_number(value) and 1 <= value <= LONGEST_SIDE and value == int(value)


def _size_meant(value: Any) -> str:
    if isinstance(value, str) and (sides := re.fullmatch(r"\s*(\d{1,5})\s*[xX×*,]\s*(\d{1,5})\s*", value)):
        return f"; the height comes first: [{sides[1]}, {sides[2]}] or [{sides[2]}, {sides[1]}]"
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value.strip()) < 6:
        return f"; a number stands without quotes: {value.strip()}"
    if isinstance(value, dict) and {"height", "width"} <= value.keys() and all(map(_is_side, value.values())):
        return f"; write [{int(value['height'])}, {int(value['width'])}]"
    return ""


def media_of(value: Any) -> tuple[str, ...]:
    """Paths of images and videos, as they were written. Raises ValueError."""
    if value is None:
        return ()
    found = _listed(value)
    paths = found if isinstance(found, list) else [found]
    if len(paths) > MOST_MEDIA:
        raise ValueError(f"`media` names {len(paths)} files; a prompt has {MOST_MEDIA} at most")
    for i, path in enumerate(paths):
        key = f"`media[{i}]`" if isinstance(found, list) else "`media`"
        if not isinstance(path, str):
            raise ValueError(f"{key} must be a path, or `media` a list of paths, not {_shown(path)}")
        if reason := half_character(path):  # of a list in a text
            raise ValueError(f"{key} {reason}")
        if not is_visible(path):
            raise ValueError(f"{key} is an empty path; leave the key out where there is no image")
        if "\0" in path:
            raise ValueError(f"{key} holds a zero character, which no path does")
        if ADDRESS.match(path.strip()):
            raise ValueError(
                f"{key} is an address, {clean(path, 60)}; media are files: fetch them first, and name each by its path"
            )
    return tuple(paths)


def _listed(value: Any) -> Any:
    """A list that a table has written as JSON in a text; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, list) else value
    return value


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) < 8 and all(isinstance(v, int | float | str) for v in value):
        return clean(json.dumps(value), 60)
    return clean(show(value), 100)


def misspelled(data: Mapping[str, Any]) -> str:
    """In words, the first key that can mean nothing but one of KEYS, which is not there; empty if there is none.

    A key is taken for metadata wherever somebody may have meant it so: `doubtful` tells of those.
    """
    for key, value in data.items():
        if key in KEYS or value is None:
            continue
        meant = _near(key)
        fits = meant and (_is_size(value) if meant == "size" else _is_texts(value))
        if fits and data.get(meant) is None:
            return f"the key `{clean(key, 40)}` is not known; `{meant}` is meant, or another name for metadata"
    return ""


@lru_cache(1024)
def _near(key: str) -> str:
    """The key that is meant, if the value is one for it."""
    plain = _plain(key)
    if plain.startswith("negprompt") or _like(plain, "negativeprompt"):
        return "negative_prompt"
    return {"media": "media", "medias": "media", "size": "size"}.get(plain, "")


def doubtful(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Keys of metadata that may be meant as one of KEYS, with that one."""
    found = {}
    for key, value in metadata.items():
        meant = _perhaps(key)
        if meant and (_is_size(value) if meant == "size" else _is_texts(value)):
            found[key] = meant
    if _is_side(metadata.get("height")) and _is_side(metadata.get("width")):
        found["height"] = "size"
    return found


@lru_cache(1024)
def _perhaps(key: str) -> str:
    plain = _plain(key)
    if plain in ("negative", "negatives", "negativetext"):
        return "negative_prompt"
    return "media" if plain.removesuffix("s") in IMAGES else "size" if plain in SIZES else ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    )


def _is_size(value: Any) -> bool:
    try:
        return size_of(value) is not None
    except ValueError:
        return False


def _plain(key: str) -> str:
    """A key without what writers of keys differ in: case, spaces, underscores, hyphens, dots. Empty for a long one."""
    return re.sub(r"[\s_.\-]+", "", key.casefold()) if len(key) <= 40 else ""


def _like(word: str, other: str) -> bool:
    """Whether one is the other but for a letter or two."""
    return abs(len(word) - len(other)) <= 2 and SequenceMatcher(None, word, other).ratio() > 0.88
