"""The bytes of a text file that somebody's editor, shell or table program has written, as text; JSON in which no key
stands twice."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from dgpo_schemas.text import clean, lone_surrogate

__all__ = ["EncodingError", "decode", "encode_like", "half_character", "read_bytes", "unique_keys"]

SHOWN = 40
"""Characters of a line that a message shows."""
MARKS = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32LE"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
"""Byte order marks. PowerShell's `>` writes UTF-16 with one."""
KINDS = (
    (b"\x1f\x8b", "a gzip file; unpack it (gunzip)"),
    (b"PK\x03\x04", "a zip archive, or a spreadsheet (.xlsx); unpack it, or export it as text"),
    (b"BZh", "a bzip2 file; unpack it (bunzip2)"),
    (b"\xfd7zXZ", "an xz file; unpack it (unxz)"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it (unzstd)"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (b"PAR1", "a Parquet table; write it as lines of JSON"),
    (b"ARROW1", "an Arrow table; write it as lines of JSON"),
    (b"%PDF", "a PDF; export it as text"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"SQLite format", "a database; write it as lines of JSON"),
    (b"\xd0\xcf\x11\xe0", "an old Office document; export it as text"),
)
"""First bytes of files that are no text, and what they are. (BZh might begin a text: a digit follows it in bzip2.)"""


class EncodingError(ValueError):
    """Bytes that are no text that can be read. line: from 1; 0 if it is about the whole file."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line

    def at(self, source: object) -> str:
        """The message with its place."""
        return f"{source}:{self.line}: {self}" if self.line else f"{source}: {self}"


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """The bytes of a file, of which one more than `most` are read at most. Raises ValueError in words that follow the
    file's name; what: what it is called there."""
    try:
        with path.open("rb") as handle:
            return handle.read(most + 1)
    except FileNotFoundError:
        raise ValueError(f"there is no such {what}") from None
    except IsADirectoryError:
        raise ValueError(f"is a directory, not a {what}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def decode(raw: bytes) -> str:
    """UTF-8, or UTF-16 or UTF-32 that begin with a byte order mark, without that mark.

    Raises EncodingError saying what the bytes seem to be instead, and how to convert them.
    """
    for start, what in KINDS:
        if raw.startswith(start) and (start != b"BZh" or raw[3:4].isdigit()):
            raise EncodingError(f"is no text: it is {what}")
    mark, name = next(((mark, name) for mark, name in MARKS if raw.startswith(mark)), (b"", ""))
    if name[:6] in ("UTF-16", "UTF-32"):
        return _wide(raw[len(mark) :], name)
    if b"\0" in raw:
        guess = _without_mark(raw[:4096])
        if guess:
            raise EncodingError(
                f"seems to be {guess} without a byte order mark, not UTF-8; convert it: iconv -f {guess} -t UTF-8 FILE "
                "> NEW"
            )
        place = raw.index(b"\0")
        column = place - raw.rfind(b"\n", 0, place)
        line = raw.count(b"\n", 0, place) + 1
        raise EncodingError(f"holds a zero byte, which no text does (byte {column} of the line); delete it", line)
    try:
        return raw[len(mark) :].decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(raw[len(mark) :], error) from None


def encode_like(raw: bytes, text: str) -> bytes:
    """A text in the encoding of these bytes, with their byte order mark; `encode_like(raw, decode(raw))` is `raw`."""
    mark, name = next(((mark, name) for mark, name in MARKS if raw.startswith(mark)), (b"", "UTF-8"))
    return mark + text.encode(name)


def _wide(raw: bytes, name: str) -> str:
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        line = raw[: error.start].decode(name, "replace").count("\n") + 1
        raise EncodingError(f"not {name}, though it begins with its mark ({error.reason})", line) from None
    if "\0" in text:
        raise EncodingError("holds a zero character, which no text does", text.count("\n", 0, text.index("\0")) + 1)
    return text


def _without_mark(raw: bytes) -> str:
    """What the places of zero bytes say; empty if nothing."""
    if len(raw) < 8:
        return ""
    zeros = [raw[i::4].count(0) / max(1, len(raw[i::4])) for i in range(4)]
    if min(zeros[2:]) > 0.9 and zeros[0] < 0.5:
        return "UTF-32LE"
    if min(zeros[:2]) > 0.9 and zeros[3] < 0.5:
        return "UTF-32BE"
    even, odd = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if max(even, odd) > 0.3 and min(even, odd) < 0.1:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return ""


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> EncodingError:
    start = raw.rfind(b"\n", 0, error.start) + 1
    end = raw.find(b"\n", error.start)
    line = raw[start : end if end >= 0 else len(raw)].rstrip(b"\r")
    place = f"not UTF-8 (byte {error.start - start + 1} of the line): 0x{raw[error.start]:02X}"
    number = raw.count(b"\n", 0, error.start) + 1
    if error.reason == "unexpected end of data":
        place += "; the file ends in the middle of a character"
        if len(raw) - error.start > 1:  # a single byte may be the last letter of another encoding too
            return EncodingError(place, number)
    if re.match(rb"\xed[\xa0-\xbf][\x80-\xbf]", raw[error.start : error.start + 3]):
        return EncodingError(f"{place}; it begins half of a character (a lone surrogate)", number)
    high = sum(byte >= 0x80 for byte in line)
    try:
        read = line.decode("cp1252")
    except UnicodeDecodeError:
        read = ""
    if not read or high > max(3, len(line) // 3):
        guess = (
            "; it is in an older encoding: iconv -f ENCODING -t UTF-8 FILE > NEW (such as GB18030, SHIFT_JIS, KOI8-R)"
        )
    else:
        part = max(0, error.start - start - SHOWN // 2)
        shown = read[part : part + SHOWN]
        guess = f"; in Windows-1252 it reads {shown!r}; if so, convert it: iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW"
    return EncodingError(place + guess, number)


def half_character(text: str) -> str:
    """In words, what a text holds that no tokenizer and no file can: half of a character or an undecodable byte; empty
    for a valid text. The words follow its name, as in "`prompt` holds ..."."""
    if text.isascii():
        return ""
    place = lone_surrogate(text)
    if place is None:
        return ""
    code = ord(text[place])
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds bytes of command lines and file names that are not UTF-8
        return f"holds the byte 0x{code - 0xDC00:02X} at character {place + 1}, which is not UTF-8"
    return (
        f"holds half of a character (the lone surrogate U+{code:04X}, character {place + 1}): its other half is "
        "missing; put in the whole character, or leave it out"
    )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`. Raises ValueError where a key stands twice: `json` would keep the
    last of its values without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:  # not by comparing each with each: there may be a million
            if key in seen:
                raise ValueError(f"the key {clean(repr(key), 100)} stands twice in one object")
            seen.add(key)
    return found
