"""One request's images on their way through readers: what is known of them so far, and what is asked next."""

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
"""How many times its seconds of CPU time an image may take by the clock, on a machine that others use too."""
PATIENCE = 5.0
"""Seconds of the clock besides."""
SECONDS_FOR = 2**24
"""Pixels of a file that are to be read in `image_seconds`; more of them have more time."""
BODY_SECONDS = 5.0
MIB_SECONDS = 0.06
"""CPU seconds in which a body must be taken apart, and more for each of its MiB: many times what it takes."""
ATTEMPTS = 3
"""Readers that are tried on a body one after the other, where they die before they have said anything of it."""
TURN = 0.1
"""Seconds a request may go on before it yields to one that waits; at least twice what it takes to be taken up again."""
BodyKind = Literal["json", "form", "files"]
"""How images lie in a body; `files` are those of a request with tensors, as `uploads.files_body` puts them."""
DTYPES = {"uint8": np.uint8, "uint16": np.uint16}
BYTES_A_PIXEL = 18
"""Of an image in the service: three channels of up to 16 bits, and of float32."""


class Unlucky(Exception):
    """The reader died, or has to."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a body holds. `pixels` has None where an image cannot be read; `lost` says why, by the image's place."""

    prompts: list[Prompt]
    pixels: list[Pixels | None]
    lost: dict[int, Refusal]


@dataclass(eq=False)
class Job:
    """A request, from its body to its pixels."""

    kind: BodyKind
    content_type: str
    body: bytes
    limits: ServiceLimits
    reserve: Callable[[int], None]
    done: bool = False
    at_rest: bool = True
    """Whether the reader waits for a new request: a turn begins and ends so, unless it goes wrong."""
    turns: int = 0
    attempts: int = 0
    names: list[str] = field(default_factory=list)
    prompts: list[Prompt] | None = None
    sizes: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    reserved: bool = False
    pixels: dict[int, Pixels] = field(default_factory=dict)
    lost: dict[int, Refusal] = field(default_factory=dict)

    def reading(self) -> Reading:
        """When it is done. Raises Refusal, that of the first image, if there are some and none could be read."""
        count = len(self.names)
        if count and len(self.lost) == count:
            first = self.lost[0]
            more = f" (and the other {count - 1} cannot be read either)" if count > 1 else ""
            raise Refusal(first.status, first.kind, f"{self.names[0]}: {first}{more}")
        assert self.prompts is not None
        return Reading(self.prompts, [self.pixels.get(i) for i in range(count)], self.lost)

    async def turn(self, reader: ReaderProcess, others_wait: Callable[[], bool]) -> None:
        """Go on until it is done, or others wait. Raises Refusal, and Unlucky if the reader is not to be used again."""
        began = time.monotonic()
        self.turns += 1
        await self._take_apart(reader)
        must = max(TURN, 2 * (time.monotonic() - began))
        while (task := await self._next(reader)) is not None:
            if others_wait() and time.monotonic() - began > must:
                break
            await self._ask(reader, *task)
        else:
            self.done = True
        await self._stop(reader)

    async def _next(self, reader: ReaderProcess) -> tuple[str, int] | None:
        """What is to be asked next: first the sizes of all, then their pixels. Raises Refusal if they are too many."""
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
        pending = next((i for i in places if i not in self.pixels and i not in self.lost), None)
        return None if pending is None else ("read", pending)

    def _reserve(self) -> None:
        most = self.limits.max_megapixels
        pixels = {i: math.prod(size) for i, size in self.sizes.items()}
        for i, count in list(pixels.items()):
            if count > most * 1_000_000:
                reason = f"it holds {count:,} pixels, more than {most} million (limits.max_megapixels)"
                self.lost[i] = Refusal(413, "size", reason)
                del self.sizes[i], pixels[i]
        if (together := sum(pixels.values())) > most * 1_000_000:
            raise Refusal(
                413,
                "size",
                f"the images hold more than {most} million pixels together (limits.max_megapixels): {together:,}; "
                "send fewer of them in one request",
            )
        self.reserve(BYTES_A_PIXEL * together)
        self.reserved = True

    # -- questions ----------------------------------------------------------------------------------------------------

    async def _take_apart(self, reader: ReaderProcess) -> None:
        limits, seconds = self.limits, BODY_SECONDS + MIB_SECONDS * len(self.body) / 2**20
        order = {
            "kind": self.kind, "type": self.content_type, "body_seconds": seconds,
            "max_samples": limits.max_samples, "max_frames": limits.max_frames, "max_side": limits.max_side,
        }  # fmt: skip
        self.attempts += 1
        try:
            async with asyncio.timeout(LOADED * seconds + PATIENCE):
                await reader.send(order, self.body)
                head, lines = await reader.receive(4 * MOST_TEXT)
            if head["say"] == "refused":
                self.at_rest = True
                raise _refusal(head)
            if self.prompts is None:
                await self._understand(head, lines)
        except (EOFError, TimeoutError, KeyError, TypeError, ValueError, RecursionError) as error:
            why, too_long = await _why(reader, error, f"more than {seconds:.0f} s")
            if too_long:
                raise Refusal(
                    413, "size", f"the body takes {why} to be taken apart; send fewer images in one"
                ) from None
            if self.attempts >= ATTEMPTS:
                raise Refusal(400, "request", f"the body cannot be read: {why}") from None
            raise Unlucky(why) from None

    async def _understand(self, head: dict[str, Any], lines: bytearray) -> None:
        """Names and prompts, of which there may be many: others have their turn in between."""
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
            reason = f"it takes {why} to be read" if too_long else f"the process that read it was lost: {why}"
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
    """What a reader says of a body or an image."""
    too_large = head["kind"] == "size"
    status = 413 if too_large else 422 if head["status"] == 422 else 400
    return Refusal(status, "size" if too_large else "request", clean(str(head["message"])))


def _received(head: dict[str, Any], rest: bytearray, most: int) -> Pixels:
    """Pixels as they came. Raises ValueError and KeyError for what does not fit together."""
    shape = tuple(map(int, head["shape"]))
    if len(shape) not in (3, 4) or shape[-1] != 3 or min(shape) < 1 or math.prod(shape[:-1]) > most:
        raise ValueError(f"pixels of the shape {shape}")
    white, notes = int(head["white"]), tuple(clean(str(note)) for note in head["notes"])
    values = np.frombuffer(rest, DTYPES[head["dtype"]]).reshape(shape)
    if not 1 <= white <= 65535:
        raise ValueError(f"white is {white}")
    return Pixels(values, white, notes)


async def _why(reader: ReaderProcess, error: Exception, limit: str) -> tuple[str, bool]:
    """Why a reader was lost, in words, and whether it took too long."""
    if isinstance(error, TimeoutError):
        return limit, True
    if not isinstance(error, EOFError):
        return f"{type(error).__name__} in what it said", False
    code = await reader.fate()
    if code == -signal.SIGPROF:
        return limit, True
    if code is None:
        return "it does not answer any more", False
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"it was ended by {name}", False
    said = reader.last_words()
    return f"it ended with status {code}" + (f": {said}" if said else ""), False
