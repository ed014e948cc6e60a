"""Reading request bodies within limits on size, time and memory, and parsing the prompts of check requests."""

from __future__ import annotations

import asyncio
import json

from pydantic import ValidationError
from starlette.requests import Request

from dgpo_core.system.reading import DEEPEST, is_deeper
from dgpo_core.types import Prompt
from dgpo_remote.messages.prompts import prompts_of
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.budget import Share
from dgpo_schemas.decoding import half_character
from dgpo_schemas.problems import dotted, explain
from dgpo_schemas.service import CheckRequest, ServiceLimits
from dgpo_schemas.text import clean

__all__ = ["Limit", "read_body", "read_prompts", "reserve_tensors"]

STEP = 2**20
"""Bytes that are reserved at a time for a body without Content-Length."""
COPIES = 2
"""Copies of a body in memory once its last byte has arrived: the buffer and the final bytes."""
LENGTH = 8
"""Bytes at the start of safetensors that hold the length of the header."""
BRACKETS, BRACKETS_A_PROMPT = 100_000, 16
"""Most lists and objects in the JSON of a request, and per prompt of max_prompts if that allows more. Creating them
holds the GIL, and garbage collection visits each."""


class Limit:
    """A limit on the size of a body in bytes, and its text in messages, which names the option."""

    def __init__(self, count: int, words: str) -> None:
        self.count = count
        self.words = words

    def refusal(self) -> Refusal:
        """Return the error for a larger body."""
        return Refusal(413, "size", f"the body is larger than {self.words}")


async def read_body(request: Request, share: Share, limit: Limit, seconds: float) -> bytes:
    """Read the whole body.

    Raises Refusal: 413 or 503 if it is too large, 415 if it is compressed, 408 if it takes longer than `seconds`.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(415, "type", f"Content-Encoding {encoding} is not supported; send the body without it")
    length = request.headers.get("content-length")
    reserved = 0
    if length is not None:
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > limit.count:
            raise limit.refusal()
        reserved = int(length)
        share.reserve(COPIES * reserved)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds) as timer:
            async for piece in request.stream():
                if len(body) + len(piece) > limit.count:
                    raise limit.refusal()
                while len(body) + len(piece) > reserved:
                    share.reserve(COPIES * STEP)
                    reserved += STEP
                body += piece
    except TimeoutError:
        if not timer.expired():
            raise
        message = f"the body was not received within {seconds:g} s (connections.body_seconds)"
        raise Refusal(408, "timeout", message) from None
    return bytes(body)


def reserve_tensors(body: bytes, share: Share, limits: ServiceLimits) -> None:
    """Reserve memory for the tensors of a safetensors body, for themselves and for the batch.

    U8 tensors become float32, four times their size. Raises Refusal, also for a header that is too large.
    """
    length = int.from_bytes(body[:LENGTH], "little")
    if limits.max_json_kib * 1024 < length <= len(body) - LENGTH:
        raise Refusal(
            413,
            "size",
            f"the safetensors header is larger than {limits.max_json_kib} KiB (limits.max_json_kib)",
        )
    _check_brackets(body[LENGTH : LENGTH + min(length, limits.max_json_kib * 1024)], limits)
    growth = 4 if b'"U8"' in body[LENGTH : LENGTH + limits.max_json_kib * 1024] else 1
    share.reserve(2 * growth * len(body))


def read_prompts(body: bytes, limits: ServiceLimits) -> list[Prompt]:
    """Parse the prompts of a check request. Raises Refusal: 400 for invalid JSON, 422 for an invalid request, 413 for
    too many prompts."""
    _check_brackets(body, limits)
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "request", f"the body is not JSON: {clean(str(error), 300)}") from None
    if not isinstance(data, dict):
        raise Refusal(422, "request", "the body must be a JSON object")
    given = data.get("prompts")
    if isinstance(given, list) and len(given) > limits.max_prompts:
        raise Refusal(
            413,
            "size",
            f"{len(given):,} prompts; at most {limits.max_prompts:,} are allowed (limits.max_prompts); split them over "
            "several requests",
        )
    if is_deeper(data):
        raise Refusal(422, "request", f"the body is nested deeper than {DEEPEST} levels")
    try:
        prompts = prompts_of(CheckRequest.model_validate(data).prompts)
    except ValidationError as error:
        path, message = explain(CheckRequest, data, error)[0]
        raise Refusal(422, "request", f"{dotted(path)}: {message}") from None
    for i, prompt in enumerate(prompts):
        for key, text in (("text", prompt.text), ("negative", prompt.negative or ""), ("source", prompt.source)):
            if reason := half_character(text):
                raise Refusal(422, "request", f"prompts.{i}.{key} {reason}")
    return prompts


def _check_brackets(text: bytes, limits: ServiceLimits) -> None:
    most, count = max(BRACKETS, BRACKETS_A_PROMPT * limits.max_prompts), text.count(b"[") + text.count(b"{")
    if count > most:
        message = (
            f"the JSON holds {count:,} lists and objects; at most {most:,} are allowed; send fewer prompts per request"
        )
        raise Refusal(413, "size", message)
