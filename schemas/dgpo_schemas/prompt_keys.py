"""Keys of a prompt record that are not metadata: the text, the negative prompt, conditioning media, the size."""

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
"""Keys with a meaning of their own; every other key is metadata."""
MOST_MEDIA = 64
"""Maximum number of images and videos of one prompt."""
ADDRESS = re.compile(r"(data:|[A-Za-z][A-Za-z0-9+.-]+://)")
IMAGES = {
    "image", "imagepath", "imagefile", "inputimage", "sourceimage", "srcimage", "initimage", "referenceimage",
    "refimage", "conditionimage", "conditioningimage", "controlimage", "editimage", "startimage", "firstframe",
    "video", "videopath", "videofile", "inputvideo", "sourcevideo",
}  # fmt: skip
"""Keys, without separators, under which other tools store a conditioning image or video, or the captioned one."""
SIZES = {"resolution", "imagesize", "heightwidth"}


def negative_of(value: Any) -> str | None:
    """Validate a negative prompt. The empty string is a valid one; null means none. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"`negative_prompt` must be a string, not {show(value)}")
    if "\0" in value:
        raise ValueError("`negative_prompt` contains a null character; delete it")
    return value


def size_of(value: Any) -> tuple[int, int] | None:
    """Parse a size as (height, width) in pixels. As in exports of tables, numbers may be written as 512.0 and lists as
    JSON in a string. Raises ValueError."""
    if value is None:
        return None
    found = _listed(value)
    sides = [found, found] if not isinstance(found, list) else found
    if len(sides) == 2 and all(_is_side(side) for side in sides):
        return int(sides[0]), int(sides[1])
    large = f"; a side has at most {LONGEST_SIDE}" if any(is_number(x) and x > LONGEST_SIDE for x in sides) else ""
    raise ValueError(
        f"`size` must be a side in pixels or [height, width], such as 512 or [480, 832], not {_shown(value)}"
        f"{_size_meant(value)}{large}; for metadata, use another key"
    )


def _is_side(value: Any) -> bool:
    return is_number(value) and 1 <= value <= LONGEST_SIDE and value == int(value)


def _size_meant(value: Any) -> str:
    if isinstance(value, str) and (sides := re.fullmatch(r"\s*(\d{1,5})\s*[xX×*,]\s*(\d{1,5})\s*", value)):
        return f"; the height comes first: [{sides[1]}, {sides[2]}] or [{sides[2]}, {sides[1]}]"
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value.strip()) < 6:
        return f"; write the number without quotes: {value.strip()}"
    if isinstance(value, dict) and {"height", "width"} <= value.keys() and all(map(_is_side, value.values())):
        return f"; write [{int(value['height'])}, {int(value['width'])}]"
    return ""


def media_of(value: Any) -> tuple[str, ...]:
    """Validate the paths of images and videos; they are returned as written. Raises ValueError."""
    if value is None:
        return ()
    found = _listed(value)
    paths = found if isinstance(found, list) else [found]
    if len(paths) > MOST_MEDIA:
        raise ValueError(f"`media` must have at most {MOST_MEDIA} files, got {len(paths)}")
    for i, path in enumerate(paths):
        key = f"`media[{i}]`" if isinstance(found, list) else "`media`"
        if not isinstance(path, str):
            several = "" if isinstance(found, list) else " or a list of paths"
            raise ValueError(f"{key} must be a path{several}, not {_shown(path)}")
        if reason := half_character(path):  # in a list that was parsed from a string
            raise ValueError(f"{key} {reason}")
        if not is_visible(path):
            raise ValueError(f"{key} is an empty path; remove the key if there is no image")
        if "\0" in path:
            raise ValueError(f"{key} contains a null character; delete it")
        if ADDRESS.match(path.strip()):
            raise ValueError(f"{key} is a URL, {clean(path, 60)}; save the file locally and write its path")
    return tuple(paths)


def _listed(value: Any) -> Any:
    """Parse a list that is written as JSON in a string; return other values unchanged."""
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
    """Return an error message for the first key that is clearly a misspelling of an absent key of KEYS; "" if none is.

    Keys that may be intended as metadata are not errors; see `doubtful`.
    """
    for key, value in data.items():
        if key in KEYS or value is None:
            continue
        meant = _near(key)
        fits = meant and (_is_size(value) if meant == "size" else _is_texts(value))
        if fits and data.get(meant) is None:
            return f"unknown key `{clean(key, 40)}`; did you mean `{meant}`? (for metadata, use another name)"
    return ""


@lru_cache(1024)
def _near(key: str) -> str:
    """Return the key of KEYS that a misspelled key stands for; "" if none."""
    plain = _plain(key)
    if plain.startswith("negprompt") or _like(plain, "negativeprompt"):
        return "negative_prompt"
    return {"media": "media", "medias": "media", "size": "size"}.get(plain, "")


def doubtful(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return metadata keys that may be intended as one of KEYS, with that key."""
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
    """Normalize a key: remove case, spaces, underscores, hyphens and dots. Returns "" for a long key."""
    return re.sub(r"[\s_.\-]+", "", key.casefold()) if len(key) <= 40 else ""


def _like(word: str, other: str) -> bool:
    """Return whether two words differ in a letter or two."""
    return abs(len(word) - len(other)) <= 2 and SequenceMatcher(None, word, other).ratio() > 0.88
