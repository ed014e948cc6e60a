"""A reader process: `python -m dgpo_remote.server.reader_main FD PARENT MEMORY`, started by `readers`.

It parses request bodies and decodes the images in them, one request at a time, until its socket closes. Its input is
untrusted: it can be killed at any moment, has a memory limit, writes no files, and is killed by its own CPU timer if
something takes too long, even inside C code. It does not import torch, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from dgpo_core.media.pixels import Unreadable, measure, read_pixels, readable_formats
from dgpo_core.media.video import NotInstalled
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.frames import BODY_COPIES, HEAD, MAGIC, OWN_MEMORY, PIXEL_BYTES, packed, unpacked
from dgpo_remote.server.uploads import Upload, read_files, read_form, read_json_samples
from dgpo_schemas.text import clean, error_text

__all__ = ["main"]

WATCH = 0.5
"""Seconds between two checks of whether the service is alive."""
NICE = 5
"""Niceness: scoring has priority over reading."""
MOST_SCANS = 500
"""Most scans of a JPEG: encoders write about ten, and decoding each one visits all pixels."""
REASON = 1000
"""Most characters of a reason."""


def main(arguments: list[str]) -> int:
    """Handle requests until the service closes the socket. Returns the exit status."""
    descriptor, parent, memory = map(int, arguments)
    _confine(memory)
    threading.Thread(target=_watch, args=(parent,), name="watch", daemon=True).start()
    os.set_inheritable(descriptor, False)
    link = Link(socket.socket(fileno=descriptor))
    readable_formats()  # imports Pillow's decoders
    with contextlib.suppress(EOFError):
        link.send({"say": "hello"})
        while True:
            Reader(link).serve(*link.receive())
    return 0


def _confine(memory: int) -> None:
    """Set the process's limits."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # the service handles them and lets requests finish
        signal.signal(ending, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    logging.disable(logging.CRITICAL)
    with contextlib.suppress(OSError):
        os.nice(NICE)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # the out-of-memory killer should choose a reader first
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_AS, memory)):
        with contextlib.suppress(ValueError, OSError):  # a lower limit may be set already; macOS has no memory limit
            resource.setrlimit(kind, (most, most))
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 2  # each thread holds its own images


def _allow(memory: int) -> None:
    """Set the memory limit to `memory` bytes besides `OWN_MEMORY`."""
    with contextlib.suppress(ValueError, OSError):
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = OWN_MEMORY + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


@contextlib.contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Limit the CPU time in seconds. After that SIGPROF kills the process, even inside C code."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


class Link:
    """The reader's end of the socket. Raises EOFError when the other end is closed."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, head: dict[str, Any], rest: bytes | memoryview = b"") -> None:
        """Send a message."""
        try:
            self._socket.sendall(packed(head, len(rest)))
            if len(rest):
                self._socket.sendall(rest)
        except OSError as error:
            raise EOFError(str(error)) from error

    def receive(self) -> tuple[dict[str, Any], bytearray]:
        """Wait for a message."""
        magic, short, long = HEAD.unpack(self._read(HEAD.size))
        if magic != MAGIC:
            raise EOFError("not a message")
        return unpacked(self._read(short)), self._read(long)

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        view, got = memoryview(data), 0
        while got < length:
            try:
                count = self._socket.recv_into(view[got:])
            except OSError as error:
                raise EOFError(str(error)) from error
            if count == 0:
                raise EOFError("the service closed the connection")
            got += count
        view.release()
        return data


class Reader:
    """Handles one turn of a request: parses its body, then answers the service's questions about each image."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def serve(self, request: dict[str, Any], body: bytearray) -> None:
        """Answer questions about a request until the service sends `stop`."""
        self._request = request
        self._held = 2 * len(body)
        _allow(BODY_COPIES * len(body))
        try:
            with _within(request["body_seconds"]):
                upload, lines = self._parse(body)
        except Refusal as error:
            self._link.send({"say": "refused", "status": error.status, "kind": error.kind, "message": str(error)})
            return
        except MemoryError:
            message = "reading the body needs more memory than a reader may use"
            self._link.send({"say": "refused", "status": 413, "kind": "size", "message": message})
            return
        body.clear()
        sizes = {"names": 1, "prompts": len(upload.prompts), "metadata": len(upload.metadata)}
        self._link.send({"say": "samples", "count": len(upload.images), **sizes}, lines)
        del lines
        while True:
            question, _ = self._link.receive()
            if question["ask"] == "stop":
                return
            self._safely(question, upload)

    def _parse(self, body: bytearray) -> tuple[Upload, bytes]:
        most = self._request["max_samples"]
        if self._request["kind"] == "form":
            upload = read_form(bytes(body), self._request["type"], most)
        elif self._request["kind"] == "files":
            upload = read_files(body, most)
        else:
            upload = read_json_samples(body, most)
        return upload, upload.lines()

    def _safely(self, question: dict[str, Any], upload: Upload) -> None:
        """Answer a question about an image, or send the reason why that is not possible."""
        image = upload.images[question["at"]]
        status, kind = 400, "request"
        _allow(self._held + PIXEL_BYTES * question["most"])
        try:
            with _within(question["seconds"]):
                data = image.content = image.data()
                if question["ask"] == "measure":
                    head, rest = self._measured(data), memoryview(b"")
                else:
                    head, rest = _pixels(data, question["most"])
                    image.content = b""  # pixels are requested only once
            self._link.send(head, rest)
            return
        except EOFError:
            raise
        except Refusal as error:
            status, kind, reason = error.status, error.kind, str(error)
        except Unreadable as error:
            reason = str(error)
            if error.too_large:
                status, kind = 413, "size"
        except (NotInstalled, ValueError) as error:
            reason = str(error)
        except MemoryError:
            status, kind, reason = 413, "size", "reading it needs more memory than a reader may use"
        except Exception as error:  # decoders may raise anything
            reason = f"cannot be read: {error_text(error)}"
        self._link.send({"say": "lost", "status": status, "kind": kind, "message": clean(reason, REASON)})

    def _measured(self, data: bytes) -> dict[str, Any]:
        """Return the frames, height and width. Raises Refusal, and what `measure` raises."""
        if (scans := _scans(data)) > MOST_SCANS:
            raise Refusal(413, "size", f"it is a JPEG of {scans:,} scans; at most {MOST_SCANS} are allowed")
        size = frames, height, width = measure(data, self._request["max_frames"])
        if frames > (most := self._request["max_frames"]):
            raise Refusal(413, "size", f"more than {most} frames (limits.max_frames)")
        if max(height, width) > (most := self._request["max_side"]):
            raise Refusal(413, "size", f"{width}x{height} pixels: a side is longer than {most} (limits.max_side)")
        if min(size) <= 0:
            raise Refusal(422, "request", f"it is empty: {frames} frames of {width}x{height} pixels")
        return {"say": "size", "size": size}


def _pixels(data: bytes, most: int) -> tuple[dict[str, Any], memoryview]:
    """Return the message with an image's pixels: [H, W, 3] or [F, H, W, 3], contiguous."""
    found = read_pixels(data, most)
    values = np.ascontiguousarray(found.values)
    notes = [clean(note, REASON) for note in found.notes][:20]
    head = {"say": "pixels", "shape": values.shape, "dtype": values.dtype.name, "white": found.white, "notes": notes}
    return head, values.data.cast("B")


def _scans(data: bytes) -> int:
    """Count the scans of the first image of a JPEG file. Returns 0 for other files, and if there are clearly few."""
    if not data.startswith(b"\xff\xd8\xff") or data.count(b"\xff\xda") <= MOST_SCANS:
        return 0
    at, scans = 2, 0
    while 0 <= at < len(data) - 3:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xD9:  # invalid data, or the end of the image: a phone's video may follow
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD7:
            at += 1 if marker == 0xFF else 2
        else:
            scans += marker == 0xDA
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        at = data.find(b"\xff", at)  # in a scan's data, 255 is followed by 0 or by a restart marker
    return scans


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
