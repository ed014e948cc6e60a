"""Decoding of text files from any editor, shell or spreadsheet, and of JSON without duplicate keys."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from dgpo_schemas.text import clean, lone_surrogate

__all__ = ["EncodingError", "decode", "encode_like", "half_character", "read_bytes", "unique_keys"]

SHOWN = 40
"""Maximum number of characters of a line to show in a message."""
MARKS = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32LE"),  # before UTF-16LE, whose mark is a prefix of this one
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
"""Signatures of binary files, with a description. (In a bzip2 file a digit follows BZh, unlike in most texts.)"""


class EncodingError(ValueError):
    """Bytes that cannot be decoded as text. line: line number from 1; 0 if the error concerns the whole file."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line

    def at(self, source: object) -> str:
        """Return the message with its position in `source`."""
        return f"{source}:{self.line}: {self}" if self.line else f"{source}: {self}"


def read_bytes(path: Path, most: int, what: str) -> bytes:
    """Read at most `most` + 1 bytes of a file.

    Raises ValueError with a message to put after the file's name; what: noun for the file in that message.
    """
    try:
        with path.open("rb") as handle:
            return handle.read(most + 1)
    except FileNotFoundError:
        raise ValueError(f"no such {what}") from None
    except IsADirectoryError:
        raise ValueError(f"is a directory, not a {what}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def decode(raw: bytes) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte order mark. The mark is removed.

    Raises EncodingError that names the likely encoding or file format, and how to convert it.
    """
    for start, what in KINDS:
        if raw.startswith(start) and (start != b"BZh" or raw[3:4].isdigit()):
            raise EncodingError(f"is not a text file: it is {what}")
    mark, name = next(((mark, name) for mark, name in MARKS if raw.startswith(mark)), (b"", ""))
    if name[:6] in ("UTF-16", "UTF-32"):
        return _wide(raw[len(mark) :], name)
    if b"\0" in raw:
        guess = _without_mark(raw[:4096])
        if guess:
            raise EncodingError(
                f"appears to be {guess} without a byte order mark, not UTF-8; convert it: iconv -f {guess} -t UTF-8 "
                "FILE > NEW"
            )
        place = raw.index(b"\0")
        column = place - raw.rfind(b"\n", 0, place)
        line = raw.count(b"\n", 0, place) + 1
        raise EncodingError(f"contains a null byte (byte {column} of the line); delete it", line)
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
        raise EncodingError(f"not {name}, despite its byte order mark ({error.reason})", line) from None
    if "\0" in text:
        raise EncodingError("contains a null character; delete it", text.count("\n", 0, text.index("\0")) + 1)
    return text


def _without_mark(raw: bytes) -> str:
    """Guess an encoding from the positions of null bytes; "" if unknown."""
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
        if len(raw) - error.start > 1:  # a single byte may also be the last character in another encoding
            return EncodingError(place, number)
    if re.match(rb"\xed[\xa0-\xbf][\x80-\xbf]", raw[error.start : error.start + 3]):
        return EncodingError(f"{place}; it starts a lone surrogate (half of a character)", number)
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
    """Describe the first lone surrogate or undecodable byte of a text, as a phrase to put after its name ("`prompt`
    contains ..."); "" if the text is valid Unicode."""
    if text.isascii():
        return ""
    place = lone_surrogate(text)
    if place is None:
        return ""
    code = ord(text[place])
    if 0xDC80 <= code <= 0xDCFF:  # Python's encoding of non-UTF-8 bytes in command lines and file names
        return f"contains the byte 0x{code - 0xDC00:02X} at character {place + 1}, which is not UTF-8"
    return (
        f"contains half of a character (the lone surrogate U+{code:04X}, character {place + 1}); write the whole "
        "character, or remove it"
    )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, as an `object_pairs_hook`. Raises ValueError for duplicate keys, of which `json` would
    silently keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:  # linear, since there may be a million keys
            if key in seen:
                raise ValueError(f"duplicate key {clean(repr(key), 100)} in one object")
            seen.add(key)
    return found
