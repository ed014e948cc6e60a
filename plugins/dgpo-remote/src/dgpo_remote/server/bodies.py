"""Conversion of request bodies to samples. Every error becomes a Refusal with its status and message."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from dgpo_core.distributed.comparing import OTHER_SIZES, by_prompt
from dgpo_core.media.kinds import Kind, one_of
from dgpo_core.types import Prompt, SampleKey
from dgpo_remote.messages.blobs import Blob, Malformed, Unfit
from dgpo_remote.messages.scores import media_shape, read_score_header, read_score_request
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.readers import Readers, Reading
from dgpo_remote.server.uploads import files_body
from dgpo_schemas.service import ServiceLimits

__all__ = ["Batch", "Samples", "in_groups", "read_images", "read_tensors", "with_media"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one shape. places: their indices in the request; keys: sample keys, if they are a group."""

    media: Tensor
    prompts: list[Prompt]
    places: list[int]
    alone: bool = False
    keys: list[SampleKey] | None = None


@dataclass(frozen=True, slots=True)
class Samples:
    """The `count` samples of a request, in batches.

    lost: why a sample is in no batch, by its index; notes: changes made while reading its file, by its index.
    """

    batches: list[Batch]
    count: int
    lost: dict[int, str] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)


# -- tensors ------------------------------------------------------------------------------------------------------


def read_tensors(body: bytes, limits: ServiceLimits) -> Samples:
    """Read a safetensors body. Raises Refusal: 400 if it is malformed, 413 or 422 if its media cannot be scored."""
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
    count = len(request.prompts)
    return Samples([Batch(request.media, request.prompts, list(range(count)), request.alone, request.keys)], count)


def _check_size(samples: int, frames: int, height: int, width: int, limits: ServiceLimits) -> None:
    """Raise Refusal for media beyond the limits, and for images without pixels."""
    if samples > limits.max_samples:
        raise Refusal(413, "size", f"{samples} samples; at most {limits.max_samples} are allowed (limits.max_samples)")
    if frames > limits.max_frames:
        raise Refusal(413, "size", f"{frames} frames; at most {limits.max_frames} are allowed (limits.max_frames)")
    if max(height, width) > limits.max_side:
        raise Refusal(
            413, "size", f"{width}x{height} pixels: a side is longer than {limits.max_side} (limits.max_side)"
        )
    if min(height, width) == 0:
        raise Refusal(422, "request", f"an image of {width}x{height} pixels is empty")


async def with_media(
    readers: Readers, samples: Samples, limits: ServiceLimits, reserve: Callable[[int], None]
) -> Samples:
    """Decode the files of the prompts' condition media in a reader process, each distinct file once.

    Raises Refusal if any of them cannot be read: its samples would be scored without their condition.
    """
    named = [medium for batch in samples.batches for prompt in batch.prompts for medium in prompt.media]
    if not named:
        return samples
    media = {medium.digest: medium for medium in named}
    kinds: dict[str, set[Kind]] = {}
    for medium in named:
        kinds.setdefault(medium.digest, set()).add(medium.kind)
    contents = [medium.content or b"" for medium in media.values()]
    reserve(2 * sum(map(len, contents)))
    names = [f"the prompts' medium sha256:{digest[:12]}" for digest in media]
    body = files_body(list(zip(names, contents, strict=True)))
    found = await readers.read("files", "", body, limits=limits, reserve=reserve)
    if found.lost:
        place, refusal = min(found.lost.items())
        raise Refusal(refusal.status, refusal.kind, f"{names[place]}: {refusal}")
    decoded = {}
    for name, (digest, medium), pixels in zip(names, media.items(), found.pixels, strict=True):
        assert pixels is not None  # it is not in `lost`
        kind: Kind = "image" if pixels.values.ndim == 3 else "video"
        if other := next((one for one in kinds[digest] if one != kind), None):
            raise Refusal(422, "request", f"{name}: expected {one_of(other)}, got {one_of(kind)}")
        decoded[digest] = replace(medium, pixels=pixels)

    def known(prompt: Prompt) -> Prompt:
        return replace(prompt, media=tuple(decoded[medium.digest] for medium in prompt.media))

    batches = [replace(batch, prompts=[known(prompt) for prompt in batch.prompts]) for batch in samples.batches]
    return replace(samples, batches=batches)


# -- images -----------------------------------------------------------------------------------------------------


async def read_images(
    readers: Readers, body: bytes, content_type: str, limits: ServiceLimits, reserve: Callable[[int], None]
) -> Samples:
    """Read image and video files with their prompts from JSON or a form, in a reader process. Raises Refusal."""
    kind: Literal["json", "form"] = "form" if content_type.lower().lstrip().startswith("multipart/") else "json"
    found = await readers.read(kind, content_type, body, limits=limits, reserve=reserve)
    return await asyncio.to_thread(_samples, found)


def _samples(found: Reading) -> Samples:
    """Batch the samples by shape. The float32 values are bit-identical to those of `read_media`."""
    places: dict[tuple[int, ...], list[int]] = {}
    notes: dict[int, tuple[str, ...]] = {}
    for i, pixels in enumerate(found.pixels):
        if pixels is not None:
            places.setdefault(pixels.shape, []).append(i)
            if pixels.notes:
                notes[i] = pixels.notes
    batches = []
    for shape, chosen in places.items():
        media = torch.empty(len(chosen), *shape)
        for row, i in zip(media.numpy(), chosen, strict=True):
            pixels, found.pixels[i] = found.pixels[i], None  # free each image once it is copied
            assert pixels is not None
            pixels.floats(row)
        batches.append(Batch(media, [found.prompts[i] for i in chosen], chosen))
    lost = {i: str(refusal) for i, refusal in found.lost.items()}
    return Samples(batches, len(found.prompts), lost, notes)


# -- groups -------------------------------------------------------------------------------------------------------


def in_groups(samples: Samples) -> Samples:
    """Regroup the samples for a group reward, one group per batch.

    Without keys, the samples of one prompt are a group, with their indices in the request as keys. A group whose
    samples differ in size is lost.
    """
    batches = [batch for batch in samples.batches if batch.keys is not None]
    rows = [(batch, row) for batch in samples.batches if batch.keys is None for row in range(len(batch.prompts))]
    lost = dict(samples.lost)
    for group in by_prompt([batch.prompts[row] for batch, row in rows]):
        members = [rows[place] for place in group]
        (batch, first), places = members[0], [batch.places[row] for batch, row in members]
        if any(other is not batch for other, _ in members):
            lost |= dict.fromkeys(places, OTHER_SIZES)
            continue
        media, prompt = batch.media[[row for _, row in members]], batch.prompts[first]
        batches.append(Batch(media, [prompt] * len(members), places, True, [(place,) for place in places]))
    return Samples(batches, samples.count, lost, samples.notes)
