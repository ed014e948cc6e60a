"""The state of one request's images while reader processes measure and decode them."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dgpo_core.media.pixels import Pixels
from dgpo_core.types import Prompt
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.reader_process import ReaderProcess
from dgpo_remote.server.uploads import MOST_TEXT
from dgpo_schemas.service import ServiceLimits
from dgpo_schemas.text import clean

__all__ = ["BodyKind", "Job", "Reading", "Unlucky"]

LOADED = 6.0
"""Ratio of the wall-clock timeout to the CPU time limit, for busy machines."""
PATIENCE = 5.0
"""Additional wall-clock seconds."""
SECONDS_FOR = 2**24
"""Pixels of a file that must be read within `image_seconds`; larger files get proportionally more time."""
BODY_SECONDS = 5.0
MIB_SECONDS = 0.06
"""CPU time limit in seconds for parsing a body, and additional seconds per MiB: many times the usual time."""
ATTEMPTS = 3
"""Readers that are tried on a body if they die before they respond."""
TURN = 0.1
"""Seconds before a request yields to a waiting one; at least twice the time to parse its body again."""
BodyKind = Literal["json", "form", "files"]
"""Format of the body; `files` holds the files of a request with tensors, in the format of `uploads.files_body`."""
DTYPES = {"uint8": np.uint8, "uint16": np.uint16}
BYTES_A_PIXEL = 18
"""Memory per pixel of an image in the service in bytes: three channels of up to 16 bits, and of float32."""


class Unlucky(Exception):
    """The reader died, or must be killed."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The content of a body. pixels: None for an image that cannot be read; lost: why, by the image's index."""

    prompts: list[Prompt]
    pixels: list[Pixels | None]
    lost: dict[int, Refusal]


@dataclass(eq=False)
class Job:
    """The state of a request from its body to its pixels."""

    kind: BodyKind
    content_type: str
    body: bytes
    limits: ServiceLimits
    reserve: Callable[[int], None]
    done: bool = False
    at_rest: bool = True
    """Whether the reader is ready for a new request, as before and after each turn that does not fail."""
    turns: int = 0
    attempts: int = 0
    names: list[str] = field(default_factory=list)
    prompts: list[Prompt] | None = None
    sizes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    reserved: bool = False
    pixels: dict[int, Pixels] = field(default_factory=dict)
    lost: dict[int, Refusal] = field(default_factory=dict)

    def reading(self) -> Reading:
        """Return the result of a finished job. Raises the first image's Refusal if no image could be read."""
        count = len(self.names)
        if count and len(self.lost) == count:
            first = self.lost[0]
            more = f" (the other {count - 1} cannot be read either)" if count > 1 else ""
            raise Refusal(first.status, first.kind, f"{self.names[0]}: {first}{more}")
        assert self.prompts is not None
        return Reading(self.prompts, [self.pixels.get(i) for i in range(count)], self.lost)

    async def turn(self, reader: ReaderProcess, others_wait: Callable[[], bool]) -> None:
        """Continue until the job is done or must yield. Raises Refusal, and Unlucky if the reader must be killed."""
        began = time.monotonic()
        self.turns += 1
        await self._parse(reader)
        minimum = max(TURN, 2 * (time.monotonic() - began))
        while (task := await self._next(reader)) is not None:
            if others_wait() and time.monotonic() - began > minimum:
                break
            await self._ask(reader, *task)
        else:
            self.done = True
        await self._stop(reader)

    async def _next(self, reader: ReaderProcess) -> tuple[str, int] | None:
        """Return the next question: first the sizes of all images, then their pixels. Raises Refusal for too many."""
        places = range(len(self.names))
        unknown = next((i for i in places if i not in self.sizes and i not in self.lost), None)
        if unknown is not None:
            return "measure", unknown
        if not self.reserved:
            try:
                self._reserve()
            except Refusal:
                await self._stop(reader)
                raise
        unread = next((i for i in places if i not in self.pixels and i not in self.lost), None)
        return None if unread is None else ("read", unread)

    def _reserve(self) -> None:
        most = self.limits.max_megapixels
        pixels = {i: math.prod(size) for i, size in self.sizes.items()}
        for i, count in list(pixels.items()):
            if count > most * 1_000_000:
                reason = f"it has {count:,} pixels, more than {most} million (limits.max_megapixels)"
                self.lost[i] = Refusal(413, "size", reason)
                del self.sizes[i], pixels[i]
        if (together := sum(pixels.values())) > most * 1_000_000:
            raise Refusal(
                413,
                "size",
                f"the images have more than {most} million pixels together (limits.max_megapixels): {together:,}; "
                "send fewer per request",
            )
        self.reserve(BYTES_A_PIXEL * together)
        self.reserved = True

    # -- questions ----------------------------------------------------------------------------------------------------

    async def _parse(self, reader: ReaderProcess) -> None:
        limits, seconds = self.limits, BODY_SECONDS + MIB_SECONDS * len(self.body) / 2**20
        request = {
            "kind": self.kind, "type": self.content_type, "body_seconds": seconds,
            "max_samples": limits.max_samples, "max_frames": limits.max_frames, "max_side": limits.max_side,
        }  # fmt: skip
        self.attempts += 1
        try:
            async with asyncio.timeout(LOADED * seconds + PATIENCE):
                await reader.send(request, self.body)
                head, lines = await reader.receive(4 * MOST_TEXT)
            if head["say"] == "refused":
                self.at_rest = True
                raise _refusal(head)
            if self.prompts is None:
                await self._set_prompts(head, lines)
        except (EOFError, TimeoutError, KeyError, TypeError, ValueError, RecursionError) as error:
            why, too_long = await _why(reader, error, f"more than {seconds:.0f} s")
            if too_long:
                raise Refusal(413, "size", f"parsing the body takes {why}; send fewer images per request") from None
            if self.attempts >= ATTEMPTS:
                raise Refusal(400, "request", f"the body cannot be read: {why}") from None
            raise Unlucky(why) from None

    async def _set_prompts(self, head: dict[str, Any], lines: bytearray) -> None:
        """Parse the names and prompts, and yield to the event loop in between, as there may be many."""
        texts = bytes(lines).split(b"\n")
        names = json.loads(texts[0])
        prompts: list[Any] = []
        metadata: list[Any] = []
        count, given = len(names), int(head["prompts"])
        for i, text in enumerate(texts[1:]):
            (prompts if i < given else metadata).append(json.loads(text))
            if i % 100 == 99 or len(text) > 2**16:
                await asyncio.sleep(0)
        if count != head["count"] or {len(prompts), len(metadata)} - {1, count}:
            raise ValueError("prompts and images differ in number")
        if not all(isinstance(one, str) for one in (*names, *prompts)) or not all(
            isinstance(m, dict) for m in metadata
        ):
            raise TypeError("prompts of other types")
        pairs = zip(*(given if len(given) == count else given * count for given in (prompts, metadata)), strict=True)
        self.names, self.prompts = names, [Prompt(text, known) for text, known in pairs]

    async def _ask(self, reader: ReaderProcess, ask: str, at: int) -> None:
        size = self.sizes.get(at, (0, 0, 0))
        most = math.prod(size)
        seconds = self.limits.image_seconds * max(1.0, most / SECONDS_FOR)
        try:
            async with asyncio.timeout(LOADED * seconds + PATIENCE):
                await reader.send({"ask": ask, "at": at, "most": most, "seconds": seconds})
                head, rest = await reader.receive(6 * most if ask == "read" else 0)
            match head["say"]:
                case "lost":
                    self.lost[at] = _refusal(head)
                case "size" if ask == "measure":
                    frames, height, width = map(int, head["size"])
                    self.sizes[at] = (frames, height, width)
                case _:
                    self.pixels[at] = _received(head, rest, most)
            self.attempts = 0
        except (EOFError, TimeoutError, KeyError, TypeError, ValueError) as error:
            why, too_long = await _why(reader, error, f"more than {seconds:.3g} s (limits.image_seconds)")
            reason = f"reading it takes {why}" if too_long else f"its reader process was lost: {why}"
            self.lost[at] = Refusal(413 if too_long else 400, "size" if too_long else "request", reason)
            raise Unlucky(f"{self.names[at]}: {reason}") from None

    async def _stop(self, reader: ReaderProcess) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await reader.send({"ask": "stop"})
        except (EOFError, TimeoutError) as error:
            raise Unlucky(f"{type(error).__name__} at the end of a request") from None
        self.at_rest = True


def _refusal(head: dict[str, Any]) -> Refusal:
    """Convert a reader's message to a Refusal."""
    too_large = head["kind"] == "size"
    status = 413 if too_large else 422 if head["status"] == 422 else 400
    return Refusal(status, "size" if too_large else "request", clean(str(head["message"])))


def _received(head: dict[str, Any], rest: bytearray, most: int) -> Pixels:
    """Convert a reader's message to pixels. Raises ValueError and KeyError if it is inconsistent."""
    shape = tuple(map(int, head["shape"]))
    if len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1 or math.prod(shape[:-1]) > most:
        raise ValueError(f"pixels of the shape {shape}")
    white, notes = int(head["white"]), tuple(clean(str(note)) for note in head["notes"])
    values = np.frombuffer(rest, DTYPES[head["dtype"]]).reshape(shape)
    if not 1 <= white <= 65535:
        raise ValueError(f"white is {white}")
    return Pixels(values, white, notes)


async def _why(reader: ReaderProcess, error: Exception, limit: str) -> tuple[str, bool]:
    """Return why a reader was lost, and whether it took too long."""
    if isinstance(error, TimeoutError):
        return limit, True
    if not isinstance(error, EOFError):
        return f"{type(error).__name__} in its message", False
    code = await reader.fate()
    if code == -signal.SIGPROF:
        return limit, True
    if code is None:
        return "it stopped responding", False
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"it was killed by {name}", False
    output = reader.last_words()
    return f"it exited with status {code}" + (f": {output}" if output else ""), False
