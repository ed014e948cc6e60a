"""From the body of a request to samples: everything that may be wrong with it has its status and its words."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from torch import Tensor

from dgpo_core.media import MAX_PIXELS, MediaError, quietly, read_media
from dgpo_core.placement.messages import (
    Blob,
    Malformed,
    Unfit,
    media_shape,
    read_score_header,
    read_score_request,
)
from dgpo_core.types import Prompt
from dgpo_schemas.problems import dotted, explain
from dgpo_schemas.service import ScorePictures, ServiceLimits

__all__ = ["Batch", "Body", "Refusal", "read_json", "read_pictures_form", "read_pictures_json", "read_tensors"]

log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
LINGER = 2.0
"""Seconds for which the rest of a refused body is read and dropped: a connection that is cut off while the caller still
writes takes the answer with it."""
FIELDS = ("image", "prompt", "metadata")


class Refusal(Exception):
    """A request that is not served: its status, whose fault it is (see `ErrorDetail.kind`) and the reason."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one shape; `places` are their numbers in the request."""

    media: Tensor
    prompts: list[Prompt]
    places: list[int]
    alone: bool = False


class Body:
    """The body of a request, read once and never beyond a limit, whatever its headers promise."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.finished = False

    async def read(self, limit: int) -> bytes:
        """All of it. Raises Refusal: 413, 415 for a compressed one, 400 if the caller goes away."""
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise Refusal(415, "type", f"Content-Encoding {encoding} is not accepted; send the body as it is")
        length = self._request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise self._too_large(limit)
        body = bytearray()
        async for piece in self._pieces():
            body += piece
            if len(body) > limit:
                raise self._too_large(limit)
        return bytes(body)

    async def discard(self, limit: int) -> None:
        """Read on, so that the caller gets to hear why it is refused; not for long."""
        if self.finished or "expect" in self._request.headers:
            return
        seen = 0
        with contextlib.suppress(TimeoutError, Refusal):
            async with asyncio.timeout(LINGER):
                async for piece in self._pieces():
                    seen += len(piece)
                    if seen > limit:
                        return

    async def _pieces(self) -> AsyncIterator[bytes]:
        while not self.finished:
            message = await self._request.receive()
            if message["type"] == "http.disconnect":
                self.finished = True
                raise Refusal(400, "request", "the connection was closed before the whole body had come")
            self.finished = not message.get("more_body", False)
            yield message.get("body", b"")

    def _too_large(self, limit: int) -> Refusal:
        return Refusal(413, "size", f"the body is larger than {limit / 2**20:g} MiB (limits.max_body_mib)")


# -- tensors ------------------------------------------------------------------------------------------------------


def read_tensors(body: bytes, limits: ServiceLimits) -> Batch:
    """Safetensors. Raises Refusal: 400 for what is none, 413 and 422 for media that are not to be scored."""
    try:
        blob = Blob(body)
        header = read_score_header(blob)
        shape = media_shape(blob, header)
        _check_size(shape[0], shape[1] if len(shape) == 5 else 1, shape[-2], shape[-1], limits)
        request = read_score_request(blob)
    except Malformed as error:
        raise Refusal(400, "request", str(error)) from None
    except Unfit as error:
        raise Refusal(422, "request", str(error)) from None
    return Batch(request.media, request.prompts, list(range(len(request.prompts))), request.alone)


def _check_size(samples: int, frames: int, height: int, width: int, limits: ServiceLimits) -> None:
    """Raise Refusal for more than the limits, and for pictures without pixels."""
    if samples > limits.max_samples:
        raise Refusal(413, "size", f"{samples} samples are more than {limits.max_samples} (limits.max_samples)")
    if frames > limits.max_frames:
        raise Refusal(413, "size", f"{frames} frames are more than {limits.max_frames} (limits.max_frames)")
    if max(height, width) > limits.max_side:
        raise Refusal(
            413, "size", f"{width}x{height} pixels: a side is longer than {limits.max_side} (limits.max_side)"
        )
    if min(height, width) == 0:
        raise Refusal(422, "request", f"a picture of {width}x{height} pixels shows nothing")


# -- pictures -----------------------------------------------------------------------------------------------------


def read_json(model: type[M], body: bytes) -> M:
    """A JSON body. Raises Refusal: 400 if it is none, 422 if it says something else."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "request", f"the body is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refusal(422, "request", "the body must be a JSON object")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        path, message = explain(model, data, error)[0]
        raise Refusal(422, "request", f"{dotted(path)}: {message}") from None


def read_pictures_json(body: bytes, limits: ServiceLimits) -> list[Batch]:
    """Pictures in base64. Raises Refusal."""
    request = read_json(ScorePictures, body)
    _check_size(len(request.samples), 1, 1, 1, limits)
    files = []
    for i, sample in enumerate(request.samples):
        try:
            files.append((f"samples.{i}.image", base64.b64decode(sample.image, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise Refusal(400, "request", f"samples.{i}.image is not base64: {error}") from None
    return _batches(decode(files, limits), [Prompt(sample.prompt, sample.metadata) for sample in request.samples])


async def read_pictures_form(body: bytes, request: Request, limits: ServiceLimits) -> list[Batch]:
    """Picture files with their prompts, as curl sends them. Raises Refusal."""

    async def whole() -> AsyncIterator[bytes]:
        yield body

    most = limits.max_samples + 1
    parser = MultiPartParser(request.headers, whole(), max_files=most, max_fields=2 * most)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        raise Refusal(400, "request", f"not multipart/form-data: {getattr(error, 'message', None) or error}") from None
    try:
        files, prompts = await _form_content(form)
    finally:
        await form.close()
    _check_size(len(files), 1, 1, 1, limits)
    return await asyncio.to_thread(lambda: _batches(decode(files, limits), prompts))


async def _form_content(form: FormData) -> tuple[list[tuple[str, bytes]], list[Prompt]]:
    unknown = sorted(set(form) - set(FIELDS))
    if unknown:
        raise Refusal(422, "request", f"unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    files: list[tuple[str, bytes]] = []
    for entry in form.getlist("image"):
        if not isinstance(entry, UploadFile):
            raise Refusal(422, "request", "`image` must be a file: curl -F image=@picture.png")
        files.append((f"image {entry.filename!r}", await entry.read()))
    if not files:
        raise Refusal(422, "request", "there is no `image`: curl -F image=@picture.png")
    texts = [_text(entry, "prompt") for entry in form.getlist("prompt")]
    metadata = [_object(_text(entry, "metadata")) for entry in form.getlist("metadata")]
    return files, [
        Prompt(text, known)
        for text, known in zip(
            _one_each(texts, len(files), "", "prompt"), _one_each(metadata, len(files), {}, "metadata"), strict=True
        )
    ]


def _one_each(given: list[Any], count: int, default: Any, name: str) -> list[Any]:
    """One for every picture, one for all, or none."""
    if len(given) not in (0, 1, count):
        raise Refusal(422, "request", f"{len(given)} times `{name}` for {count} pictures; give it once, or for each")
    return given if len(given) == count else (given or [default]) * count


def _text(entry: UploadFile | str, name: str) -> str:
    if isinstance(entry, UploadFile):
        raise Refusal(422, "request", f"`{name}` must be a text, not a file")
    return entry


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "request", f"`metadata` is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refusal(422, "request", "`metadata` must be a JSON object")
    return data


def decode(files: list[tuple[str, bytes]], limits: ServiceLimits) -> list[Tensor]:
    """PNG and JPEG files, each with its name, as [3, H, W] (animated ones as [F, 3, H, W]), float32 in [0, 1].

    The sizes of all are read from their headers and checked, each and their sum, before any is unpacked. Raises
    Refusal.
    """
    most, pixels = limits.max_megapixels * 1_000_000, 0
    for name, data in files:
        pixels += _pixels(name, data, limits)
        if pixels > most:
            raise Refusal(
                413,
                "size",
                f"the pictures hold more than {limits.max_megapixels} million pixels together "
                "(limits.max_megapixels); send fewer of them in one request",
            )
    return [_unpacked(name, data) for name, data in files]


def _pixels(name: str, data: bytes, limits: ServiceLimits) -> int:
    """Pixels of all frames of a file, by its header."""
    with _reading(name), Image.open(BytesIO(data), formats=("PNG", "JPEG")) as image:
        frames = getattr(image, "n_frames", 1) if image.format == "PNG" else 1
        _check_size(1, frames, image.height, image.width, limits)
        pixels = frames * image.height * image.width
        if pixels > MAX_PIXELS:
            raise Refusal(413, "size", f"its frames hold more than {MAX_PIXELS:,} pixels")
        return pixels


def _unpacked(name: str, data: bytes) -> Tensor:
    with _reading(name), tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(data)
        file.flush()
        medium = read_media(Path(file.name))
        for note in medium.notes:  # there is no place for them in the answer
            log.warning("%s: %s", name, note)
        return medium.tensor


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever is wrong with a picture becomes a Refusal that names it."""
    try:
        with quietly():
            yield
    except Refusal as error:
        raise Refusal(error.status, error.kind, f"{name}: {error}") from None
    except Image.DecompressionBombError:
        raise Refusal(413, "size", f"{name}: it would unpack to far too many pixels") from None
    except UnidentifiedImageError:
        raise Refusal(400, "request", f"{name}: is neither a PNG nor a JPEG file") from None
    except MediaError as error:
        raise Refusal(400, "request", f"{name}: {error.reason}") from None
    except Exception as error:  # Pillow meets broken files with whatever comes
        raise Refusal(400, "request", f"{name}: cannot be read: {type(error).__name__}: {error}") from None


def _batches(media: list[Tensor], prompts: list[Prompt]) -> list[Batch]:
    """Samples by their shapes: those of one shape are scored together."""
    places: dict[tuple[int, ...], list[int]] = {}
    for i, one in enumerate(media):
        places.setdefault(tuple(one.shape), []).append(i)
    return [
        Batch(torch.stack([media[i] for i in chosen]), [prompts[i] for i in chosen], chosen)
        for chosen in places.values()
    ]
