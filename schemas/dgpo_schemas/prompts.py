"""Prompt files: .txt with one prompt per line; .jsonl with one object per line, which has `prompt`, further known keys
and metadata; .json with a list of such objects or of strings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from dgpo_schemas.base import StrictModel
from dgpo_schemas.decoding import EncodingError, decode, half_character, read_bytes, unique_keys
from dgpo_schemas.problems import show
from dgpo_schemas.prompt_keys import KEYS, media_of, misspelled, negative_of, size_of
from dgpo_schemas.text import clean, is_visible

__all__ = ["PromptRecord", "loads", "read_prompts", "record_of", "unreadable"]

MAX_BYTES = 256 << 20
"""Maximum size of a prompt file. A million prompts of two lines are smaller; the limit stops endless devices."""
KEYS_SHOWN = 8
LINES = (".jsonl", ".ndjson")
ENDINGS = "a prompt file must end in .txt (one prompt per line), .jsonl (one object per line) or .json (one list)"
TABLES = {".csv": "read_csv({!r})", ".tsv": "read_csv({!r}, sep='\\t')", ".parquet": "read_parquet({!r})"}
TABLES |= {".xlsx": "read_excel({!r})", ".feather": "read_feather({!r})"}
"""File endings of tables, with the pandas call that reads them."""
CAPTIONS = ("prompt", "text", "caption", "captions", "prompts", "instruction", "description", "sentence", "txt")
"""Keys under which other tools store the text of a prompt."""


class PromptRecord(StrictModel):
    """One prompt. In a .jsonl line, every other key is metadata."""

    prompt: str = Field(description="Text of the prompt.")
    negative_prompt: str | None = Field(
        default=None,
        description="Negative prompt for classifier-free guidance; default: the model's unconditional prompt.",
    )
    media: tuple[str, ...] = Field(
        default=(),
        description="Images or videos that the samples are conditioned on: a path, or a list of paths in the order "
        "that the model expects, relative to the prompt file.",
    )
    size: tuple[int, int] | None = Field(
        default=None,
        description="Size of the samples: side length in pixels, or [height, width]; default: rollout.resolution.",
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="Metadata for rewards.")


def read_prompts(path: Path) -> dict[str, PromptRecord]:
    """Read the prompts of a file, by position: `file:line`, with the number of the entry in a list.

    Lines end in a line feed, a carriage return or both. Lines without a visible character are skipped, and byte order
    marks are removed. The format of a pipe (`<(...)`, /dev/stdin) is detected from its first character. NaN in JSON is
    null. The files in `media` are not opened.

    Raises ValueError that names the file and the line if the file is missing, unreadable, not text or has another
    ending, if a line is malformed, a prompt is empty or not valid Unicode, a key is misspelled or has an invalid value,
    or if there are no prompts.
    """
    if "\0" in str(path):
        raise ValueError(f"{clean(str(path))}: a path cannot contain a null character")
    kind = _kind(path)
    raw = _read(path)
    try:
        text = decode(raw)
    except EncodingError as error:
        raise ValueError(error.at(path)) from None
    first = text.lstrip("\ufeff \t\r\n")[:1]
    if first == "[" and (kind == ".json" or (kind != ".txt" and _is_list(text))):
        found = _entries(text, path)
    elif kind == ".json" and (whole := _object_of(text)) is not None:
        found = iter([(str(path), _record(whole, str(path), escapes=True))])
    elif kind in (".json", *LINES) or (not kind and first == "{"):
        found = _lines(text, path, _from_json)
    else:
        found = _lines(text, path, _from_text)
    records = dict(found)
    if not records:
        once = "" if path.is_file() else "; a pipe can be read only once: for several processes or splits, use a file"
        raise ValueError(f"{path}: has no prompts{once}")
    return records


def _kind(path: Path) -> str:
    """Return the file ending in lower case, or "" for a possible pipe. Raises ValueError for other endings."""
    ending = path.suffix.lower()
    if ending in (".txt", ".json", *LINES):
        return ending
    try:
        there = path.exists()
        if path.is_dir():
            raise ValueError(f"{path}: is a directory, not a prompt file")
        passed_on = not ending and str(path).startswith(("/dev/", "/proc/"))  # /dev/stdin may be a file
        if there and (passed_on or not path.is_file()):
            return ""
    except (OSError, UnicodeEncodeError):
        pass
    hint = ""
    if ending in TABLES:
        table = TABLES[ending].format(path.name)
        new = f"{path.stem}.jsonl"
        hint = f"; convert it with pandas: pandas.{table}.to_json({new!r}, orient='records', lines=True)"
    elif path.suffixes[-2:-1] and ending in (".gz", ".zip", ".bz2", ".xz", ".zst"):
        hint = "; unpack it first"
    raise ValueError(f"{path}: {ENDINGS}{hint}")


def _read(path: Path) -> bytes:
    try:
        raw = read_bytes(path, MAX_BYTES, "prompt file")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_BYTES >> 20} MiB; use a subset of its prompts")
    return raw


def _lines(text: str, path: Path, record: Callable[[str, str], PromptRecord]) -> Iterator[tuple[str, PromptRecord]]:
    for number, line in enumerate(re.split(r"\r*\n|\r", text), 1):
        line = line.strip().removeprefix("\ufeff").strip()  # of a concatenated file
        if is_visible(line):
            yield f"{path}:{number}", record(line, f"{path}:{number}")


def _from_text(line: str, where: str) -> PromptRecord:
    if line.startswith("{"):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and "prompt" in found:
            raise ValueError(f"{where}: is a JSON object; a file with such lines must end in .jsonl")
    return PromptRecord(prompt=line)


def _from_json(line: str, where: str) -> PromptRecord:
    try:
        data = loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} (column {error.colno}){_hint(line, error)}") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise ValueError(f"{where}: cannot read JSON: {error}") from None
    return _record(data, where, escapes="\\u" in line)


def _hint(line: str, error: json.JSONDecodeError) -> str:
    if line in ("{", "[") and error.pos >= len(line):
        return "; each object must be on one line: jq -c . FILE > NEW"
    wrong = line[error.pos : error.pos + 1] in ("'", "“", "”", "„", "‘", "’", "«")
    return '; strings and keys must be in straight double quotes: "prompt"' if wrong else ""


def _object_of(text: str) -> dict[str, Any] | None:
    """Parse a file that consists of one JSON object; None if it does not."""
    try:
        data = loads(text.strip().removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _is_list(text: str) -> bool:
    """Return whether a text that begins with a bracket is one list of entries, not a line of a .jsonl file."""
    body = text.lstrip("\ufeff \t\r\n")
    return body[1:].lstrip()[:1] in ("{", "]")


def _entries(text: str, path: Path) -> Iterator[tuple[str, PromptRecord]]:
    """Yield the entries of a JSON list of objects or strings."""
    decoder = _decoder()
    place, escapes = text.index("[") + 1, "\\u" in text
    line, counted, number = 1, 0, 0
    blank = re.compile(r"[ \t\r\n\ufeff]*")
    while True:
        place = blank.match(text, place).end()  # type: ignore[union-attr]
        if number and text[place : place + 1] == ",":
            place = blank.match(text, place + 1).end()  # type: ignore[union-attr]
        elif text[place : place + 1] == "]":
            break
        elif number:
            raise ValueError(f"{path}:{text.count(chr(10), 0, place) + 1}: not JSON: expected , or ] after an entry")
        number += 1
        line, counted = line + text.count("\n", counted, place), place
        where = f"{path}:{line}, entry {number}"
        try:
            data, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: cannot read JSON: {error}") from None
        yield where, _record({"prompt": data} if isinstance(data, str) else data, where, escapes=escapes)
    if is_visible(text[place + 1 :]):
        line += text.count("\n", counted, place)
        raise ValueError(f"{path}:{line}: not JSON: unexpected text after the end of the list")


def record_of(data: Any, where: str) -> PromptRecord:
    """A prompt from an object like those of a prompt file. Raises ValueError, which begins with `where`."""
    return _record(data, where, escapes=True)


def _record(data: Any, where: str, *, escapes: bool) -> PromptRecord:
    """Convert a JSON value to a record. escapes: whether the JSON has `\\u` escapes, which may be lone surrogates."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: must be an object with a `prompt`, not {show(data)}")
    prompt = data.get("prompt")
    reason = unreadable(data) if escapes else ""
    if reason:  # before the check for visible characters, since a lone surrogate is not visible
        raise ValueError(f"{where}: {reason}")
    if not isinstance(prompt, str) or not is_visible(prompt) or "\0" in prompt:
        if isinstance(prompt, str) and "\0" in prompt:
            raise ValueError(f"{where}: `prompt` contains a null character; delete it")
        raise ValueError(f"{where}: `prompt` must be a non-empty string{_instead(data)}")
    if mistake := misspelled(data):
        raise ValueError(f"{where}: {mistake}")
    try:
        return PromptRecord(
            prompt=prompt,
            negative_prompt=negative_of(data.get("negative_prompt")),
            media=media_of(data.get("media")),
            size=size_of(data.get("size")),
            metadata={key: value for key, value in data.items() if key not in KEYS},
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _instead(data: dict[str, Any]) -> str:
    """Describe what was found instead of a valid `prompt`, and which other key may hold it."""
    if data.get("prompt") is not None:
        return f", not {show(data['prompt'])}" if not isinstance(data["prompt"], str) else ""
    keys = [key for key in data if key != "prompt"]
    if not keys:
        return "; the object is empty" if not data else ", not null"
    listed = ", ".join(clean(key, 30) for key in keys[:KEYS_SHOWN])
    more = f" and {len(keys) - KEYS_SHOWN} more" if len(keys) > KEYS_SHOWN else ""
    likely = [key for key in keys if key.casefold().strip() in CAPTIONS and isinstance(data[key], str)]
    hint = ""
    lists = [key for key in keys if isinstance(data[key], list) and data[key] and isinstance(data[key][0], dict | str)]
    if len(lists) == 1 and not likely:
        old = json.dumps(lists[0])
        hint = f"; if {clean(lists[0], 30)} holds the prompts, take that list alone: jq '.[{old}]' FILE > NEW.json"
    if len(likely) == 1:
        old = json.dumps(likely[0])
        hint = f"; if {clean(likely[0], 30)} is meant, rename it: jq -c '.prompt = .[{old}] | del(.[{old}])' FILE > NEW"
    return f" (the keys are {listed}{more}){hint}"


def unreadable(value: Any) -> str:
    """Describe the first string in a JSON value that is not valid Unicode, with its key; "" if all are valid."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        key, item = pending.pop()
        if isinstance(item, str):
            reason = half_character(item)
            if reason:
                return f"`{key}` {reason}" if key else reason
        elif isinstance(item, dict):
            for name in item:
                if half_character(name):
                    return f"the key {name!r} {half_character(name)}"
            pending += [(f"{key}.{name}" if key else name, inner) for name, inner in reversed(item.items())]
        elif isinstance(item, list):
            pending += [(f"{key}[{i}]", inner) for i, inner in reversed(list(enumerate(item)))]
    return ""


def loads(text: str) -> Any:
    """Parse JSON. NaN, which exports of tables use for missing values, becomes null.

    Raises ValueError for invalid JSON, including infinities and objects with duplicate keys.
    """
    return _decoder().decode(text)


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_constant, parse_float=_float, object_pairs_hook=unique_keys)


def _constant(name: str) -> None:
    if name != "NaN":
        raise ValueError(f"{name} is not a valid JSON number")


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{clean(digits, 40)} is out of range for a 64-bit number")
    return number
