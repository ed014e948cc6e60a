"""Media, prompts and scores as single safetensors blobs, exact to the bit, for workers and services.

Letters: B samples, F frames, C = 3 channels, H W pixels. A blob holds tensors, and JSON as text under `dgpo` in its
`__metadata__`. Reading one checks everything before a tensor is made of it; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.media.conditions import content_of
from dgpo_core.training.scores import plain
from dgpo_core.types import ConditionMedium, Example, Prompt, SampleKey, Scores
from dgpo_schemas.problems import dotted, explain
from dgpo_schemas.service import PROTOCOL, PromptMessage, ScoreHeader
from dgpo_schemas.text import clean, error_text

__all__ = [
    "MEDIA_DTYPES",
    "Blob",
    "Malformed",
    "OtherProtocol",
    "ScoreRequest",
    "Unfit",
    "example_blob",
    "pack",
    "plain",
    "prompts_as_json",
    "prompts_of",
    "read_examples",
    "read_score_answer",
    "read_score_request",
    "score_answer",
    "score_request",
    "stretches",
]

MEDIA_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
"""What media may be, by safetensors' names. Bytes are read as float32 in [0, 1], x / 255."""
FILE = "sha256:"
"""Begins the name of a tensor that is a condition medium's file, as int8: uint8 are media to be scored."""
NONE: Mapping[str, bytes] = MappingProxyType({})
LENGTH = 8
"""Bytes at the beginning of a blob that hold the length of its header."""
LARGEST = 512 * 2**10
"""Bytes of JSON about the prompts of one request."""
HEADER = 32 * 2**20
"""Bytes of a blob's header that are believed: JSON takes many times as much memory once it is read."""
MOST_TENSORS = 4096
MOST_DIMENSIONS = 16
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
         "U64": 8, "F64": 8}  # fmt: skip
"""Of a number, by safetensors' name of its type."""
FRAMES = {4: "images [B, 3, H, W]", 5: "videos [B, F, 3, H, W]"}


class Malformed(ValueError):
    """Bytes that are no such message."""


class OtherProtocol(Malformed):
    """A message of another version of dgpo."""


class Unfit(ValueError):
    """A message that can be read, about media that cannot be scored: dtype, shape or count."""


# -- blobs --------------------------------------------------------------------------------------------------------


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """JSON and tensors as a blob."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    if len(on_cpu) > 1:
        on_cpu = {name: tensor.clone() for name, tensor in on_cpu.items()}  # safetensors refuse shared memory
    blob: bytes = safetensors.torch.save(on_cpu, {"dgpo": json.dumps(header)})
    return blob


class Blob:
    """A blob that was received: `header` is its JSON, `shapes` and `dtypes` (safetensors' names) are those of its
    tensors, which are made when they are asked for. Raises Malformed."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        head = _head(data)
        try:
            self.header = json.loads(head.pop("__metadata__")["dgpo"])
        except (KeyError, TypeError, AttributeError):
            raise Malformed("the safetensors have no text `dgpo` in their `__metadata__`") from None
        except (ValueError, RecursionError) as error:
            raise Malformed(f"`dgpo` in the `__metadata__` is not JSON: {clean(str(error), 200)}") from None
        if not isinstance(self.header, dict):
            raise Malformed("`dgpo` in the `__metadata__` must be a JSON object")
        self.shapes, self.dtypes = _described(head, len(data) - LENGTH - int.from_bytes(data[:LENGTH], "little"))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors, each in memory of its own: arithmetic libraries promise the same bits for aligned memory only,
        and inside the blob nothing is aligned."""
        try:
            return {name: tensor.clone() for name, tensor in safetensors.torch.load(self._data).items()}
        except (safetensors.SafetensorError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError,
                RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            raise Malformed(f"the safetensors are damaged: {error_text(error, 300)}") from None


def _head(data: bytes) -> dict[str, Any]:
    """The JSON with which safetensors begin."""
    length = int.from_bytes(data[:LENGTH], "little")
    if len(data) < LENGTH or not 2 <= length <= len(data) - LENGTH:
        raise Malformed("the body is not in the safetensors format")
    if length > HEADER:
        raise Malformed(f"the header of the safetensors has {length >> 20} MiB, more than {HEADER >> 20}")
    try:
        head = json.loads(data[LENGTH : LENGTH + length], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        twice = f": {error}" if isinstance(error, _Twice) else ": its header is not JSON"
        raise Malformed(f"the body is not in the safetensors format{twice}") from None
    if not isinstance(head, dict):
        raise Malformed("the body is not in the safetensors format: its header is no object")
    return head


class _Twice(ValueError):
    """A name that stands twice in an object."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _Twice("a name stands twice in its header")
    return made


def _described(head: Mapping[str, Any], room: int) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(shapes, dtypes) of the tensors, whose bytes must fill the `room` behind the header one after the other: a few
    bytes could else claim to be any number of tensors of any size."""
    shapes, dtypes, places = {}, {}, []
    if len(head) > MOST_TENSORS:
        raise Malformed(f"the safetensors hold {len(head)} tensors, more than {MOST_TENSORS}")
    for name, entry in head.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise Malformed("the safetensors' header does not describe its tensors")
        shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
        fits = isinstance(dtype, str) and _are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2
        if not fits or len(shape) > MOST_DIMENSIONS:
            raise Malformed("the safetensors' header does not describe its tensors")
        if dtype in BYTES and offsets[1] - offsets[0] != BYTES[dtype] * math.prod(shape):
            raise Malformed(f"the safetensors are damaged: a tensor of the shape {shape} does not have its size")
        shapes[name], dtypes[name] = tuple(shape), clean(dtype, 20)
        places.append((offsets[0], offsets[1]))
    end = 0
    for first, last in sorted(places):
        if first != end or last < first:
            raise Malformed("the safetensors are damaged: the bytes of their tensors overlap or leave gaps")
        end = last
    if end != room:
        raise Malformed(f"the safetensors are damaged: their tensors have {end} bytes, and there are {room}")
    return shapes, dtypes


def _are_sizes(values: Any) -> bool:
    """Whether it is a list of whole numbers, none of them negative or beyond what a machine counts to."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


# -- prompts ------------------------------------------------------------------------------------------------------


def prompts_as_json(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """For a header or a JSON body; media by their digests."""
    return [{"text": prompt.text, "metadata": plain(prompt.metadata), **_drawn_from(prompt)} for prompt in prompts]


def _drawn_from(prompt: Prompt) -> dict[str, Any]:
    """What is set of it besides its text and metadata."""
    told = {
        "negative": prompt.negative,
        "media": [{"kind": medium.kind, "digest": medium.digest} for medium in prompt.media] or None,
        "size": None if prompt.size is None else list(prompt.size),
        "source": prompt.source or None,
        "fps": prompt.fps,
    }
    return {key: value for key, value in told.items() if value is not None}


def prompts_of(messages: Sequence[PromptMessage], contents: Mapping[str, bytes] = NONE) -> list[Prompt]:
    """What was sent, with what is known of their media: bytes by digest."""
    return [
        Prompt(
            message.text,
            message.metadata,
            negative=message.negative,
            media=tuple(
                ConditionMedium(medium.kind, medium.digest, content=contents.get(medium.digest))
                for medium in message.media
            ),
            size=None if message.size is None else (message.size[0], message.size[1]),
            source=message.source,
            fps=message.fps,
        )
        for message in messages
    ]


# -- condition media ----------------------------------------------------------------------------------------------


def _files(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The bytes of the prompts' media, each distinct one once, by their names in a blob. Raises UserError for a file
    that has changed."""
    media = {medium.digest: medium for prompt in prompts for medium in prompt.media}
    return {
        f"{FILE}{digest}": torch.frombuffer(bytearray(content_of(medium)), dtype=torch.int8)
        for digest, medium in media.items()
    }


def _named(messages: Sequence[PromptMessage]) -> set[str]:
    return {f"{FILE}{medium.digest}" for message in messages for medium in message.media}


def _contents(blob: Blob, messages: Sequence[PromptMessage]) -> dict[str, bytes]:
    """The bytes of the prompts' media by digest. Raises Unfit for other bytes than a digest says, or none."""
    found = {}
    for name in sorted(_named(messages)):
        if name not in blob.shapes:
            raise Unfit(f"a prompt has the medium {name}, whose bytes are not sent")
        if blob.dtypes[name] != "I8" or len(blob.shapes[name]) != 1:
            raise Unfit(f"{name} is {blob.dtypes[name]} {list(blob.shapes[name])}; a file's bytes are I8 [n]")
        content = blob.tensors[name].numpy().tobytes()
        digest = name.removeprefix(FILE)
        if hashlib.sha256(content).hexdigest() != digest:
            raise Unfit(f"{name} has other bytes than its digest says")
        found[digest] = content
    return found


def stretches(prompts: Sequence[Prompt], most: int) -> Iterator[slice]:
    """Stretches of at most `most` prompts whose JSON has at most `LARGEST` bytes; a prompt that is longer by itself
    has one of its own."""
    start, size = 0, 0
    for i, one in enumerate(prompts_as_json(prompts)):
        length = len(json.dumps(one)) + 2
        if i > start and (i - start >= most or size + length > LARGEST):
            yield slice(start, i)
            start, size = i, 0
        size += length
    if start < len(prompts):
        yield slice(start, len(prompts))


# -- asking for scores --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Media as the reward is to see them, and the prompt of each sample; keys: of the members, if it is a group."""

    media: Tensor
    prompts: list[Prompt]
    alone: bool
    keys: list[SampleKey] | None = None


def score_request(
    media: Tensor, prompts: Sequence[Prompt], *, alone: bool = True, keys: Sequence[SampleKey] | None = None
) -> bytes:
    """Media [B, 3, H, W] or [B, F, 3, H, W] with the prompt of each sample, to be scored by themselves. keys: of the
    members, if it is a group for a reward that compares.

    Raises Unfit for media that are neither float32, float16, bfloat16 nor uint8, and UserError for a condition medium
    whose file has changed.
    """
    if media.dtype not in MEDIA_DTYPES.values():
        raise Unfit(f"media are {media.dtype}; what travels is float32, float16, bfloat16 or uint8")
    header: dict[str, Any] = {"protocol": PROTOCOL, "prompts": prompts_as_json(prompts), "alone": alone}
    if keys is not None:
        header["keys"] = [list(key) for key in keys]
    files = _files(prompts)
    # Sums over memory in another order have other last bits, so a permuted tensor arrives as one.
    strides = media.stride()
    order = sorted(range(media.dim()), key=lambda dimension: -strides[dimension])
    if media.numel() and order != sorted(order):
        header["order"] = order
        media = media.permute(order)
    return pack(header, {"media": media, **files})


def read_score_request(blob: Blob) -> ScoreRequest:
    """Raises Malformed, OtherProtocol, and Unfit for media that do not fit the prompts or are none."""
    header = read_score_header(blob)
    shape = media_shape(blob, header)
    media = blob.tensors["media"]
    if header.order:
        media = media.permute([header.order.index(dimension) for dimension in range(len(shape))])
    if media.dtype == torch.uint8:
        media = media.float() / 255
    keys = None if header.keys is None else [tuple(key) for key in header.keys]
    return ScoreRequest(media, prompts_of(header.prompts, _contents(blob, header.prompts)), header.alone, keys)


def read_score_header(blob: Blob) -> ScoreHeader:
    """The JSON of a request. Raises Malformed or OtherProtocol."""
    check_protocol(blob.header)
    try:
        return ScoreHeader.model_validate(blob.header)
    except ValidationError as error:
        path, message = explain(ScoreHeader, blob.header, error)[0]
        raise Malformed(f"{dotted(path)}: {message}") from None


def media_shape(blob: Blob, header: ScoreHeader) -> tuple[int, ...]:
    """Shape of the media as the reward will see them, before any tensor is made. Raises Unfit."""
    files = _named(header.prompts)
    if set(blob.shapes) - files != {"media"}:
        there = clean(", ".join(sorted(blob.shapes)), 200) or "none"
        beside = ", beside the prompts' files" if files else ""
        raise Unfit(f"there must be one tensor, `media`{beside}; there are {there}")
    if blob.dtypes["media"] not in MEDIA_DTYPES:
        raise Unfit(f"`media` is {blob.dtypes['media']}, it must be one of {', '.join(MEDIA_DTYPES)}")
    shape = blob.shapes["media"]
    if header.order is not None:
        if sorted(header.order) != list(range(len(shape))):
            raise Unfit(f"`order` {header.order} does not order {len(shape)} dimensions")
        shape = tuple(shape[header.order.index(dimension)] for dimension in range(len(shape)))
    if len(shape) not in FRAMES or shape[-3] != 3:
        raise Unfit(f"`media` has the shape {list(shape)}; it must be {' or '.join(FRAMES.values())}")
    if shape[0] != len(header.prompts):
        raise Unfit(f"`media` has {shape[0]} samples for {len(header.prompts)} prompts")
    if header.keys is not None:
        _check_group(header, header.keys)
    return shape


def _check_group(header: ScoreHeader, keys: Sequence[Sequence[int | str]]) -> None:
    """Raise Unfit unless a request with keys is one group."""
    if len(keys) != len(header.prompts):
        raise Unfit(f"there are {len(keys)} `keys` for {len(header.prompts)} samples")
    if not keys:
        raise Unfit("a request with `keys` is one group, and this one has no samples")
    if len({tuple(key) for key in keys}) != len(keys):
        raise Unfit("two samples have the same key in `keys`")
    if any(prompt != header.prompts[0] for prompt in header.prompts[1:]):
        raise Unfit("the samples of a request with `keys` are one group, and must have one prompt")


def check_protocol(header: Mapping[str, Any]) -> None:
    """Raises OtherProtocol."""
    if header.get("protocol") != PROTOCOL:
        protocol = header.get("protocol")
        theirs = clean(repr(protocol) if isinstance(protocol, str) else str(protocol), 40)
        raise OtherProtocol(
            f"speaks version {theirs} of the protocol, this dgpo speaks version {PROTOCOL}; "
            "install the same version of dgpo on both sides"
        )


# -- answers ------------------------------------------------------------------------------------------------------


def score_answer(scores: Scores) -> bytes:
    """Scores as they are: it is for their reader to say that they are not one number per sample."""
    header = {"protocol": PROTOCOL, "diagnostics": [plain(one) for one in scores.diagnostics]}
    return pack(header, {"values": scores.values, "missing": scores.missing})


def read_score_answer(blob: Blob) -> Scores:
    """Raises Malformed for what is no answer, and OtherProtocol."""
    check_protocol(blob.header)
    diagnostics = blob.header.get("diagnostics")
    if set(blob.shapes) != {"values", "missing"} or not isinstance(diagnostics, list):
        raise Malformed("the answer does not hold `values`, `missing` and diagnostics")
    if not all(isinstance(one, dict) for one in diagnostics):
        raise Malformed("the answer's diagnostics are not an object a sample")
    return Scores(blob.tensors["values"], blob.tensors["missing"], tuple(diagnostics))


def example_blob(examples: Sequence[Example]) -> bytes:
    """Examples, each with media of its own size."""
    header = [{"name": e.name, "good": e.good, "prompt": prompts_as_json([e.prompt])[0]} for e in examples]
    files = _files([e.prompt for e in examples])
    return pack({"protocol": PROTOCOL, "examples": header}, {str(i): e.media for i, e in enumerate(examples)} | files)


def read_examples(blob: Blob) -> list[Example]:
    """Raises Malformed and OtherProtocol."""
    check_protocol(blob.header)
    try:
        given = blob.header["examples"]
        messages = [PromptMessage.model_validate(one["prompt"]) for one in given]
        prompts = prompts_of(messages, _contents(blob, messages))
        return [
            Example(clean(_text(one["name"]), 200), prompt, blob.tensors[str(i)], bool(one["good"]))
            for i, (one, prompt) in enumerate(zip(given, prompts, strict=True))
        ]
    except (KeyError, TypeError, ValueError) as error:
        said = clean(str(error).split("\n", 1)[0], 200)
        raise Malformed(f"the answer does not hold examples: {said}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name is {type(value).__name__}, not a text")
    return value
