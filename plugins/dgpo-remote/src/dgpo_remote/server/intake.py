"""The body of a request as it comes in: never beyond a limit, a time or the memory there is; and prompts to check."""

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
"""Bytes that are reserved at a time for a body that does not say how long it is."""
COPIES = 2
"""Times that a body lies in memory when its last byte has come: in pieces and whole."""
LENGTH = 8
"""Bytes at the beginning of safetensors that hold the length of their header."""
BRACKETS, BRACKETS_A_PROMPT = 100_000, 16
"""Lists and objects in the JSON of a request, and of each of max_prompts if that is more. The interpreter's lock is
held while they are made, and collecting garbage looks through each."""


class Limit:
    """Bytes of a body, with the setting that says so."""

    def __init__(self, count: int, words: str) -> None:
        self.count = count
        self.words = words

    def refusal(self) -> Refusal:
        """For a larger one."""
        return Refusal(413, "size", f"the body is larger than {self.words}")


async def read_body(request: Request, share: Share, limit: Limit, seconds: float) -> bytes:
    """The whole body. Raises Refusal: 413 and 503 for one that is too large, 415 for a compressed one, 408 for one that
    does not come in so many seconds."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Refusal(415, "type", f"Content-Encoding {encoding} is not accepted; send the body as it is")
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
        message = f"the body did not come within {seconds:g} s (connections.body_seconds)"
        raise Refusal(408, "timeout", message) from None
    return bytes(body)


def reserve_tensors(body: bytes, share: Share, limits: ServiceLimits) -> None:
    """Room for the tensors that are going to be made of safetensors: once as they are and once as the batch. Bytes
    become floats of four times their size. Raises Refusal, also for a header that is too long to be
    read, or holds too much."""
    length = int.from_bytes(body[:LENGTH], "little")
    if limits.max_json_kib * 1024 < length <= len(body) - LENGTH:
        raise Refusal(
            413,
            "size",
            f"the JSON before the tensors is larger than {limits.max_json_kib} KiB (limits.max_json_kib)",
        )
    _check_brackets(body[LENGTH : LENGTH + min(length, limits.max_json_kib * 1024)], limits)
    growth = 4 if b'"U8"' in body[LENGTH : LENGTH + limits.max_json_kib * 1024] else 1
    share.reserve(2 * growth * len(body))


def read_prompts(body: bytes, limits: ServiceLimits) -> list[Prompt]:
    """The prompts of a check. Raises Refusal: 400 for what is no JSON, 422 for what is no check, 413 for too many."""
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
            f"{len(given):,} prompts are more than {limits.max_prompts:,} (limits.max_prompts); send them in parts",
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
        message = f"the JSON holds {count:,} lists and objects; {most:,} are read; send fewer prompts at a time"
        raise Refusal(413, "size", message)
