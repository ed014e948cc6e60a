"""Parsing of request bodies with images and prompts: JSON with base64, or multipart/form-data. In a reader process.

Every error becomes a Refusal with its status and message. This module does not import torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from dgpo_remote.refusal import Refusal
from dgpo_remote.server.base64s import from_base64
from dgpo_schemas.decoding import half_character, unique_keys
from dgpo_schemas.text import clean

__all__ = ["MOST_TEXT", "Image", "Upload", "files_body", "read_files", "read_form", "read_json_samples"]

FIELDS = ("image", "prompt", "metadata")
MOST_TEXT = 16 * 2**20
"""Most bytes of the prompts and metadata of a request."""
MOST_VALUES = 200_000
"""Most values in all metadata of a request: the service parses them again, beside other requests."""
MOST_BRACKETS = 2 * MOST_VALUES
"""Most opening brackets of a JSON text, including those inside strings."""
MOST_DEPTH = 64
"""Most levels of metadata."""
MOST_DIGITS = 400
"""Most digits of an integer: one of more than 308 digits is larger than any float."""
NAME = 200
"""Characters of a file name that are shown."""


@dataclass(slots=True)
class Image:
    """An uploaded file: its name for messages, and its bytes or their base64."""

    name: str
    content: bytes | str

    def data(self) -> bytes:
        """Return the bytes. Raises ValueError if the content is not base64."""
        return self.content if isinstance(self.content, bytes) else from_base64(self.content)


@dataclass(slots=True)
class Upload:
    """Uploaded images. prompts, metadata: one per image, or one for all."""

    images: list[Image]
    prompts: list[str]
    metadata: list[dict[str, Any]]

    def lines(self) -> bytes:
        """Serialize the names, then each prompt, then each metadata object as one line of JSON.

        Raises Refusal if they are too large, too deep, or not valid Unicode.
        """
        _check_size(sum(map(len, self.prompts)))
        for i, text in enumerate(self.prompts):
            if reason := half_character(text):
                raise Refusal(422, "request", f"prompt {i} {reason}")
        _count(self.metadata)
        try:
            lines = [
                json.dumps(one, ensure_ascii=False, separators=(",", ":")).encode()
                for one in ([p.name for p in self.images], *self.prompts, *self.metadata)
            ]
        except UnicodeEncodeError as error:
            half = f"the lone surrogate U+{ord(error.object[error.start]):04X}"
            raise Refusal(422, "request", f"metadata contains an invalid character ({half}); remove it") from None
        _check_size(sum(map(len, lines[1:])))
        return b"\n".join(lines)


def _check_size(size: int) -> None:
    """Raise Refusal if prompts and metadata are too large."""
    if size > MOST_TEXT:
        raise Refusal(
            413,
            "size",
            f"prompts and metadata of {size / 2**20:.1f} MiB; at most {MOST_TEXT // 2**20} MiB are allowed",
        )


def _count(metadata: list[dict[str, Any]]) -> None:
    """Raise Refusal if the metadata have too many values or levels."""
    values, depth, level = 0, 0, list[Any](metadata)
    while level:
        values += len(level)
        depth += 1
        if values > MOST_VALUES:
            raise Refusal(413, "size", f"metadata: more than {MOST_VALUES:,} values in a request")
        if depth > MOST_DEPTH:
            raise Refusal(422, "request", f"metadata: more than {MOST_DEPTH} levels")
        level = [inner for one in level for inner in _inside(one)]


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


# -- JSON ---------------------------------------------------------------------------------------------------------


def _loads(text: bytes | bytearray | str, what: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no huge integers. Raises Refusal.

    Too many brackets are refused before parsing: each list or object takes about 100 bytes of memory.
    """
    brackets = text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    if brackets > MOST_BRACKETS:
        raise Refusal(
            413, "size", f"{what} holds {brackets:,} lists and objects; at most {MOST_VALUES:,} values are allowed"
        )
    try:
        return json.loads(text, object_pairs_hook=unique_keys, parse_int=_integer)
    except UnicodeDecodeError as error:
        raise Refusal(400, "request", f"{what} is not JSON: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise Refusal(400, "request", f"{what} is not JSON: too many levels") from None
    except ValueError as error:
        raise Refusal(400, "request", f"{what} is not JSON: {clean(str(error), 300)}") from None


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits; at most {MOST_DIGITS} are allowed")
    return int(digits)


def read_json_samples(body: bytes | bytearray, max_samples: int) -> Upload:
    """Parse `{"samples": [{"image": "base64", "prompt": "...", "metadata": {}}]}`. Raises Refusal."""
    data = _loads(body, "the body")
    if not isinstance(data, dict):
        raise Refusal(422, "request", "the body must be a JSON object")
    samples = data.get("samples")
    if isinstance(samples, list):
        _check_count(len(samples), max_samples)
    if set(data) != {"samples"} or not isinstance(samples, list) or not all(map(_is_sample, samples)):
        raise _explained(data)
    return Upload(
        [Image(f"samples.{i}.image", sample["image"]) for i, sample in enumerate(samples)],
        [sample.get("prompt", "") for sample in samples],
        [sample.get("metadata", {}) for sample in samples],
    )


def _is_sample(sample: Any) -> bool:
    """Whether a sample is valid. Equivalent to `ScoreImages`, which is slow to import."""
    return (
        isinstance(sample, dict)
        and sample.keys() <= set(FIELDS)
        and isinstance(sample.get("image"), str)
        and isinstance(sample.get("prompt", ""), str)
        and isinstance(sample.get("metadata", {}), dict)
    )


def _explained(data: dict[str, Any]) -> Refusal:
    """Return the error for an invalid body, with the message of the schema."""
    from pydantic import ValidationError

    from dgpo_schemas.problems import dotted, explain
    from dgpo_schemas.service import ScoreImages

    try:
        ScoreImages.model_validate(data)
    except ValidationError as error:
        path, message = explain(ScoreImages, data, error)[0]
        return Refusal(422, "request", clean(f"{dotted(path)}: {message}"))
    return Refusal(
        422, "request", "the body does not match ScoreImages"
    )  # unreachable while `_is_sample` is equivalent


def _check_count(count: int, most: int) -> None:
    if count > most:
        raise Refusal(413, "size", f"{count} samples; at most {most} are allowed (limits.max_samples)")


# -- files of a request with tensors --------------------------------------------------------------------------------


def files_body(files: Sequence[tuple[str, bytes]]) -> bytes:
    """Serialize named files as one body: a line of JSON with their names and lengths, then their bytes."""
    return b"".join((json.dumps([(name, len(data)) for name, data in files]).encode(), b"\n", *(d for _, d in files)))


def read_files(body: bytes | bytearray, max_samples: int) -> Upload:
    """Parse the format of `files_body`. Raises Refusal."""
    line, _, rest = body.partition(b"\n")
    files = json.loads(line)
    _check_count(len(files), max_samples)
    images, at = [], 0
    for name, length in files:
        images.append(Image(name, bytes(rest[at : at + length])))
        at += length
    return Upload(images, [""], [{}])


# -- multipart/form-data --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class FormPart:
    """One part of a form."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytes = b""
    number: int = 0

    def read(self) -> tuple[str, str | None, bytes]:
        """Return the field name, the file name (None for text) and the bytes. Raises Refusal."""
        from python_multipart.multipart import parse_options_header

        disposition = self.headers.get(b"content-disposition", b"")
        kind, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind.strip().lower() != b"form-data" or not name:
            raise _no_form(
                f"part {self.number} has no name; expected "
                'Content-Disposition: form-data; name="image"; filename="x.png"'
            )
        if self.headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
            raise _no_form(f"{_shown(name)} holds several files in one part; send one part per file: -F image=@x.png")
        coding = self.headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if coding not in (b"binary", b"8bit", b"7bit", b"base64"):
            encoding = clean(repr(coding.decode("latin-1")), 60)
            raise _no_form(f"{_shown(name)}: unsupported Content-Transfer-Encoding {encoding}")
        data = self.data
        if coding == b"base64":
            try:
                data = from_base64(data.decode("latin-1")) if data.strip() else b""
            except ValueError as error:
                raise _no_form(f"{_shown(name)} {error}") from None
        file = options.get(b"filename")
        if file is None and (other := re.search(rb"filename\*\s*=\s*\"?[\w-]*'[\w-]*'([^;\"]*)", disposition)):
            file = unquote(other[1].decode("latin-1")).encode("utf-8", "replace")  # RFC 5987, as some clients send it
        return name, None if file is None else file.decode("utf-8", "replace"), data


def read_form(body: bytes, content_type: str, max_samples: int) -> Upload:
    """Parse a form with image files and their prompts, as curl sends it. Raises Refusal."""
    images: list[Image] = []
    texts: dict[str, list[str]] = {"prompt": [], "metadata": []}
    fields = [part.read() for part in _parts(body, content_type, 3 * max_samples + 3)]
    unknown = sorted({name for name, _, _ in fields} - set(FIELDS))
    if unknown:
        raise Refusal(422, "request", f"unknown field {_shown(unknown[0])}; allowed are {', '.join(FIELDS)}")
    if "image" not in {name for name, _, _ in fields}:
        raise Refusal(422, "request", "missing field `image`: curl -F image=@image.png")
    for name, file, data in fields:
        if name == "image":
            if file is None:
                raise Refusal(422, "request", "`image` must be a file: curl -F image=@image.png")
            images.append(Image(f"image {_shown(file)}", data))
        elif file is not None:
            raise Refusal(422, "request", f"`{name}` must be text, not a file: curl -F '{name}=<FILE'")
        else:
            texts[name].append(_text(name, data))
    _check_count(len(images), max_samples)
    for name, given in texts.items():
        if len(given) not in (0, 1, len(images)):
            raise Refusal(
                422,
                "request",
                f"{len(given)} `{name}` fields for {len(images)} images; send one, or one per image",
            )
    metadata = [_loads(text, "`metadata`") for text in texts["metadata"]]
    if not all(isinstance(one, dict) for one in metadata):
        raise Refusal(422, "request", "`metadata` must be a JSON object")
    return Upload(images, texts["prompt"] or [""], metadata or [{}])


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refusal(400, "request", f"`{name}` is not UTF-8: {error.reason} at byte {error.start}") from None


def _shown(name: str) -> str:
    return clean(repr(name), NAME)


def _no_form(why: str) -> Refusal:
    return Refusal(400, "request", f"not multipart/form-data: {why}")


def _in_form(body: bytes, boundary: bytes) -> bytes:
    """Normalize a form for the parser: no preamble, CRLF line endings, unfolded headers.

    MIME allows a preamble and folded headers, and hand-written clients often send only LF. Raises Refusal.
    """
    mark = b"--" + boundary
    before, found, rest = (b"", mark, body[len(mark) :]) if body.startswith(mark) else body.partition(b"\n" + mark)
    if b"content-disposition:" in before.lower():
        raise _no_form(f"a part before its first boundary, {_shown(mark.decode('latin-1'))}")
    body = mark + rest if found else body
    line = re.match(re.escape(mark) + rb"[ \t]*(\r?\n)", body)
    if line is None or not (line[1] == b"\n" or re.search(re.escape(mark) + rb"\r\n(?:[^\r\n]+\r\n)+[ \t]", body)):
        return body
    end = re.escape(line[1])
    texts = re.split(rb"(?:\A|" + end + rb")" + re.escape(mark) + rb"(--)?[ \t]*(?=" + end + rb"|\Z)", body)
    pieces: list[bytes] = []
    for opens, text in zip(texts[1::2], texts[2::2], strict=True):
        if opens is not None:
            pieces += [mark, b"--\r\n"]
            continue
        head, _, data = text.removeprefix(line[1]).partition(2 * line[1])
        head = re.sub(end + rb"[ \t]+", b" ", head).replace(line[1], b"\r\n")
        pieces += [mark, b"\r\n", head, b"\r\n\r\n", data, b"\r\n"]
    return b"".join(pieces)


def _parts(body: bytes, content_type: str, most: int) -> list[FormPart]:
    """Parse all parts of a form.

    Raises Refusal for a form without end, and for data outside its parts: nothing that was sent is ignored.
    """
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 200:
        raise _no_form("its Content-Type has no boundary; clients such as curl -F set it automatically")
    body = _in_form(body, boundary)
    parts: list[FormPart] = []
    pieces: list[bytes] = []
    name, value, ended = b"", b"", False

    def begin() -> None:
        if len(parts) == most:
            raise Refusal(413, "size", f"a form of more than {most} parts (limits.max_samples)")
        parts.append(FormPart(number=len(parts) + 1))
        pieces.clear()

    def on_name(data: bytes, start: int, end: int) -> None:
        nonlocal name
        name += data[start:end]

    def on_value(data: bytes, start: int, end: int) -> None:
        nonlocal value
        value += data[start:end]

    def on_header() -> None:
        nonlocal name, value
        parts[-1].headers[name.lower()] = value
        name, value = b"", b""

    def on_data(data: bytes, start: int, end: int) -> None:
        pieces.append(data[start:end])

    def on_part() -> None:
        parts[-1].data = pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def on_end() -> None:
        nonlocal ended
        ended = True

    calls: Any = {
        "on_part_begin": begin, "on_header_field": on_name, "on_header_value": on_value, "on_header_end": on_header,
        "on_part_data": on_data, "on_part_end": on_part, "on_end": on_end,
    }  # fmt: skip
    try:
        parser = MultipartParser(boundary, calls)
        parser.write(body)
    except (FormParserError, ValueError) as error:
        raise _no_form(clean(str(error), 300)) from None
    shown = clean(repr("--" + boundary.decode("latin-1") + "--"), NAME)
    if not ended:
        raise _no_form(f"its last boundary, {shown}, is missing: the body is truncated or malformed")
    line = rb"(?:\A|\n)--" + re.escape(boundary)
    delimiters = re.findall(line + rb"(?:--)?[ \t]*(?=\r\n|\Z)", body)
    # The parser takes `--boundary--` for the end even if more follows on the line.
    if len(delimiters) != len(parts) + 1 or re.search(line + rb"--(?![ \t]*(?:\r\n|\Z))", body):
        raise _no_form(f"unexpected boundary, or data after {shown}")
    return parts
