"""Score requests and their responses.

Dimensions: B samples, F frames, 3 channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.training.scores import plain
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_remote.messages.blobs import Blob, Malformed, Unfit, check_protocol, pack
from dgpo_remote.messages.prompts import contents_in, files_of, names_of_files, prompts_as_json, prompts_of
from dgpo_schemas.problems import dotted, explain
from dgpo_schemas.service import PROTOCOL, PromptMessage, ScoreHeader
from dgpo_schemas.text import clean

__all__ = [
    "MEDIA_DTYPES",
    "ScoreRequest",
    "example_blob",
    "media_shape",
    "read_examples",
    "read_score_answer",
    "read_score_header",
    "read_score_request",
    "score_answer",
    "score_request",
]

MEDIA_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}
"""Dtypes of media, by safetensors dtype name. U8 is converted to float32 in [0, 1], x / 255."""
FRAMES = {4: "images [B, 3, H, W]", 5: "videos [B, F, 3, H, W]"}


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Media for the reward, and the prompt of each sample. keys: sample keys of the members, if it is a group."""

    media: Tensor
    prompts: list[Prompt]
    alone: bool
    keys: list[SampleKey] | None = None


def score_request(
    media: Tensor, prompts: Sequence[Prompt], *, alone: bool = True, keys: Sequence[SampleKey] | None = None
) -> bytes:
    """Serialize media [B, 3, H, W] or [B, F, 3, H, W] with the prompt of each sample.

    alone: score them in a separate batch; keys: sample keys of the members, if they are a group for a group reward.

    Raises Unfit for media that are not float32, float16, bfloat16 or uint8, and UserError for a condition medium whose
    file has changed.
    """
    if media.dtype not in MEDIA_DTYPES.values():
        raise Unfit(f"media must be float32, float16, bfloat16 or uint8, got {media.dtype}")
    header: dict[str, Any] = {"protocol": PROTOCOL, "prompts": prompts_as_json(prompts), "alone": alone}
    if keys is not None:
        header["keys"] = [list(key) for key in keys]
    files = files_of(prompts)
    # Keep the memory order: sums over memory in another order differ in the last bits.
    strides = media.stride()
    order = sorted(range(media.dim()), key=lambda dimension: -strides[dimension])
    if media.numel() and order != sorted(order):
        header["order"] = order
        media = media.permute(order)
    return pack(header, {"media": media, **files})


def read_score_request(blob: Blob) -> ScoreRequest:
    """Parse a score request. Raises Malformed, OtherProtocol, and Unfit for media that do not match the prompts."""
    header = read_score_header(blob)
    shape = media_shape(blob, header)
    media = blob.tensors["media"]
    if header.order:
        media = media.permute([header.order.index(dimension) for dimension in range(len(shape))])
    if media.dtype == torch.uint8:
        media = media.float() / 255
    keys = None if header.keys is None else [tuple(key) for key in header.keys]
    return ScoreRequest(media, prompts_of(header.prompts, contents_in(blob, header.prompts)), header.alone, keys)


def read_score_header(blob: Blob) -> ScoreHeader:
    """Parse the JSON of a score request. Raises Malformed or OtherProtocol."""
    check_protocol(blob.header)
    try:
        return ScoreHeader.model_validate(blob.header)
    except ValidationError as error:
        path, message = explain(ScoreHeader, blob.header, error)[0]
        raise Malformed(f"{dotted(path)}: {message}") from None


def media_shape(blob: Blob, header: ScoreHeader) -> tuple[int, ...]:
    """Return the shape of the media as the reward receives them, before any tensor is created. Raises Unfit."""
    files = names_of_files(header.prompts)
    if set(blob.shapes) - files != {"media"}:
        names = clean(", ".join(sorted(blob.shapes)), 200) or "none"
        besides = " besides the prompts' files" if files else ""
        raise Unfit(f"there must be one tensor{besides}, `media`, got {names}")
    if blob.dtypes["media"] not in MEDIA_DTYPES:
        raise Unfit(f"`media` must be one of {', '.join(MEDIA_DTYPES)}, got {blob.dtypes['media']}")
    shape = blob.shapes["media"]
    if header.order is not None:
        if sorted(header.order) != list(range(len(shape))):
            raise Unfit(f"`order` {header.order} is not a permutation of {len(shape)} dimensions")
        shape = tuple(shape[header.order.index(dimension)] for dimension in range(len(shape)))
    if len(shape) not in FRAMES or shape[-3] != 3:
        raise Unfit(f"`media` must be {' or '.join(FRAMES.values())}, got shape {list(shape)}")
    if shape[0] != len(header.prompts):
        raise Unfit(f"`media` has {shape[0]} samples for {len(header.prompts)} prompts")
    if header.keys is not None:
        _check_group(header, header.keys)
    return shape


def _check_group(header: ScoreHeader, keys: Sequence[Sequence[int | str]]) -> None:
    """Raise Unfit unless a request with keys holds exactly one group."""
    if len(keys) != len(header.prompts):
        raise Unfit(f"there are {len(keys)} `keys` for {len(header.prompts)} samples")
    if not keys:
        raise Unfit("a request with `keys` is one group and must have samples")
    if len({tuple(key) for key in keys}) != len(keys):
        raise Unfit("two samples have the same key in `keys`")
    if any(prompt != header.prompts[0] for prompt in header.prompts[1:]):
        raise Unfit("the samples of a request with `keys` are one group and must share one prompt")


def score_answer(scores: Scores) -> bytes:
    """Serialize scores without validation: their receiver checks that there is one number per sample."""
    header = {"protocol": PROTOCOL, "diagnostics": [plain(one) for one in scores.diagnostics]}
    return pack(header, {"values": scores.values, "missing": scores.missing})


def read_score_answer(blob: Blob) -> Scores:
    """Parse scores without validation, for `check_scores`. Raises Malformed and OtherProtocol."""
    check_protocol(blob.header)
    diagnostics = blob.header.get("diagnostics")
    if set(blob.shapes) != {"values", "missing"} or not isinstance(diagnostics, list):
        raise Malformed("the response must hold `values`, `missing` and a list of diagnostics")
    if not all(isinstance(one, dict) for one in diagnostics):
        raise Malformed("the diagnostics of the response must be one object per sample")
    return Scores(blob.tensors["values"], blob.tensors["missing"], tuple(diagnostics))


def example_blob(examples: Sequence[Example]) -> bytes:
    """Serialize examples, whose media may differ in size."""
    header = [{"name": e.name, "good": e.good, "prompt": prompts_as_json([e.prompt])[0]} for e in examples]
    files = files_of([e.prompt for e in examples])
    return pack({"protocol": PROTOCOL, "examples": header}, {str(i): e.media for i, e in enumerate(examples)} | files)


def read_examples(blob: Blob) -> list[Example]:
    """Parse examples. Raises Malformed and OtherProtocol."""
    check_protocol(blob.header)
    try:
        given = blob.header["examples"]
        messages = [PromptMessage.model_validate(one["prompt"]) for one in given]
        prompts = prompts_of(messages, contents_in(blob, messages))
        return [
            Example(clean(_text(one["name"]), 200), prompt, blob.tensors[str(i)], bool(one["good"]))
            for i, (one, prompt) in enumerate(zip(given, prompts, strict=True))
        ]
    except (KeyError, TypeError, ValueError) as error:
        reason = clean(str(error).split("\n", 1)[0], 200)
        raise Malformed(f"the response does not hold examples: {reason}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name must be a string, got {type(value).__name__}")
    return value
