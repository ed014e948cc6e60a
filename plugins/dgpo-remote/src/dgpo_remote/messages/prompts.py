"""Prompts as JSON, with the files of their condition media as tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dgpo_core.media.conditions import content_of, tensor_of
from dgpo_core.training.scores import plain
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_remote.messages.blobs import Blob, Unfit
from dgpo_schemas.service import PromptMessage

__all__ = ["LARGEST", "contents_in", "files_of", "names_of_files", "prompts_as_json", "prompts_of", "stretches"]

FILE = "sha256:"
"""Prefix of the name of a tensor that holds a condition medium's file, as int8 (uint8 tensors are media to score)."""
NONE: Mapping[str, bytes] = MappingProxyType({})
LARGEST = 512 * 2**10
"""Most bytes of JSON for the prompts of one request."""


def prompts_as_json(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Convert prompts to JSON values for a header or a JSON body. Condition media are given by their digests."""
    return [{"text": prompt.text, "metadata": plain(prompt.metadata), **_conditions(prompt)} for prompt in prompts]


def _conditions(prompt: Prompt) -> dict[str, Any]:
    """Return the fields that are set besides text and metadata."""
    fields = {
        "negative": prompt.negative,
        "media": [{"kind": medium.kind, "digest": medium.digest} for medium in prompt.media] or None,
        "size": None if prompt.size is None else list(prompt.size),
        "source": prompt.source or None,
        "fps": prompt.fps,
    }
    return {key: value for key, value in fields.items() if value is not None}


def prompts_of(messages: Sequence[PromptMessage], contents: Mapping[str, bytes] = NONE) -> list[Prompt]:
    """Convert messages to prompts. contents: bytes of the condition media, by digest, as far as known."""
    return [
        Prompt(
            message.text,
            message.metadata,
            negative=message.negative,
            media=tuple(
                ConditionMedium(medium.kind, medium.digest, content=contents.get(medium.digest), reader=tensor_of)
                for medium in message.media
            ),
            size=None if message.size is None else (message.size[0], message.size[1]),
            source=message.source,
            fps=message.fps,
        )
        for message in messages
    ]


def files_of(prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Return the bytes of the prompts' distinct condition media as int8 tensors [n], by their names in a blob.

    Raises UserError for a file that has changed.
    """
    media = {medium.digest: medium for prompt in prompts for medium in prompt.media}
    return {
        f"{FILE}{digest}": torch.frombuffer(bytearray(content_of(medium)), dtype=torch.int8)
        for digest, medium in media.items()
    }


def names_of_files(messages: Sequence[PromptMessage]) -> set[str]:
    """Return the tensor names of the prompts' condition media."""
    return {f"{FILE}{medium.digest}" for message in messages for medium in message.media}


def contents_in(blob: Blob, messages: Sequence[PromptMessage]) -> dict[str, bytes]:
    """Return the bytes of the prompts' condition media, by digest. Raises Unfit if they are missing or do not match."""
    found = {}
    for name in sorted(names_of_files(messages)):
        if name not in blob.shapes:
            raise Unfit(f"the bytes of a prompt's medium {name} are missing")
        if blob.dtypes[name] != "I8" or len(blob.shapes[name]) != 1:
            raise Unfit(f"{name} must be I8 [n], got {blob.dtypes[name]} {list(blob.shapes[name])}")
        content = blob.tensors[name].numpy().tobytes()
        digest = name.removeprefix(FILE)
        if hashlib.sha256(content).hexdigest() != digest:
            raise Unfit(f"the bytes of {name} do not match its digest")
        found[digest] = content
    return found


def stretches(prompts: Sequence[Prompt], most: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `most` prompts and `LARGEST` bytes of JSON.

    A single prompt with more JSON gets its own slice.
    """
    start, size = 0, 0
    for i, one in enumerate(prompts_as_json(prompts)):
        length = len(json.dumps(one)) + 2
        if i > start and (i - start >= most or size + length > LARGEST):
            yield slice(start, i)
            start, size = i, 0
        size += length
    if start < len(prompts):
        yield slice(start, len(prompts))
