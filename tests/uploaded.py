"""Bodies of requests and the processes that read them: for tests of readers."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from PIL import Image

from dgpo_remote.refusal import Refusal
from dgpo_remote.server.bodies import Samples, read_images
from dgpo_remote.server.readers import Readers
from dgpo_schemas.service import ServiceLimits

T = TypeVar("T")


Serve = Callable[..., Any]


LIMITS = ServiceLimits()


FORM = "multipart/form-data; boundary=X"


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    """Two processes."""
    made = Readers(2, LIMITS)
    made.start()
    yield made
    made.close()
    assert made.processes() == []


@pytest.fixture
def one() -> Iterator[Readers]:
    """A single process."""
    made = Readers(1, LIMITS)
    made.start()
    yield made
    made.close()


def run(made: Coroutine[Any, Any, T]) -> T:
    async def in_time() -> T:
        async with asyncio.timeout(30):
            return await made

    return asyncio.run(in_time())


def png(color: Any = (10, 200, 30), size: tuple[int, int] = (8, 6), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind, **options)
    return file.getvalue()


def coded(*files: bytes | str, **more: Any) -> bytes:
    texts = [one if isinstance(one, str) else base64.b64encode(one).decode() for one in files]
    return json.dumps({"samples": [{"image": text} | more for text in texts]}).encode()


def form(*parts: tuple[str, bytes], end: bytes = b"\r\n--X--\r\n") -> bytes:
    """Each with what follows `form-data;` and its bytes."""
    heads = [f"--X\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data for head, data in parts]
    return b"\r\n".join(heads) + end


def file(data: bytes, name: str = "a.png") -> tuple[str, bytes]:
    return f'name="image"; filename="{name}"', data


async def read(readers: Readers, body: bytes, kind: str = "application/json", **changes: Any) -> Samples:
    limits = LIMITS.model_copy(update=changes)
    return await read_images(readers, body, kind, limits, lambda size: None)


def refused(readers: Readers, body: bytes, kind: str = "application/json", **changes: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        run(read(readers, body, kind, **changes))
    return caught.value


def scans(count: int, side: int) -> bytes:
    """A progressive JPEG whose last scan comes so many times more."""
    data = png(size=(side, side), kind="JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + data[-2:]


JSON = {"Content-Type": "application/json"}
