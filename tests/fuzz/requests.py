"""Corrupted requests to a reward service: each gets an answer of a status that fits, in the service's own words."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from dgpo_core.types import Prompt
from dgpo_remote.messages.blobs import LENGTH
from dgpo_remote.messages.scores import score_request
from dgpo_schemas.service import SAFETENSORS
from tests.faults.serving import Answer, exchange, post, served
from tests.fuzz.fuzzer import Case, Subject
from tests.fuzz.mutations import DATA, VALUES
from tests.fuzz.mutations import TEXT as SPOILING

__all__ = ["REQUESTS"]

Random = random.Random
METADATA = {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
BOUNDARY = "----dgpo-boundary"
REFUSALS = (400, 403, 404, 405, 408, 411, 413, 414, 415, 417, 422, 431, 501, 503, 505)
LONGEST = 2100
"""Characters of a message."""
ODD_HEADS = [
    "Content-Length: -1", "Content-Length: 1e3", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked", "Content-Encoding: gzip", "Expect: 100-continue", "Expect: nothing",
    "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Content-Type:", "Host: evil.example",
    "Origin: http://evil.example", "Authorization: Bearer \xff", "Accept: application/x-safetensors", "Accept: nothing",
    "Upgrade: websocket", "Connection: keep-alive", "X: " + "y" * 20_000, "Dgpo-Request: \x1b[2J", "no colon at all",
    " folded: x", "Content-Length: 10\r\nContent-Length: 11", "Range: bytes=0-1", "X\x00Y: z",
]  # fmt: skip


def _image(rng: Random) -> bytes:
    made = BytesIO()
    mode = rng.choice(["RGB", "RGB", "L", "RGBA", "P"])
    kind = rng.choice(["PNG", "PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
    image = Image.new(mode, (rng.choice([1, 16, 64]), 16), 1)
    image.convert("RGB" if kind == "JPEG" else mode).save(made, kind)
    raw = made.getvalue()
    return rng.choice(SPOILING)(rng, raw) if rng.random() < 0.4 else raw


def _spoil(rng: Random, data: Any) -> Any:
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        if rng.random() < 0.3:
            data[rng.choice([*list(data), "more"])] = deepcopy(rng.choice(VALUES))
        else:
            with contextlib.suppress(IndexError, OverflowError):  # nothing is left to change, or no number can hold it
                rng.choice(DATA)(rng, data)
    return data


def _tensors(rng: Random) -> tuple[str, str, bytes]:
    count, side = rng.choice([0, 1, 2, 4]), rng.choice([0, 1, 16])
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16, torch.uint8])
    media = torch.rand(count, 3, side, 16).to(dtype)
    if dtype.is_floating_point and rng.random() < 0.1:
        media.fill_(rng.choice([torch.nan, torch.inf, -torch.inf, 1e4]))
    body = score_request(media, [Prompt("a circle", METADATA)] * count)
    if rng.random() < 0.6:
        length = int.from_bytes(body[:LENGTH], "little")
        head, rest = json.loads(body[LENGTH : LENGTH + length]), body[LENGTH + length :]
        if rng.random() < 0.5:
            head["__metadata__"]["dgpo"] = json.dumps(
                _spoil(rng, json.loads(head["__metadata__"]["dgpo"])), default=str
            )
        else:
            _spoil(rng, rng.choice([head, head.get("media", head)]))
        text = json.dumps(head, default=str).encode()
        body = len(text).to_bytes(LENGTH, "little") + text + rest
    return "/v1/score", SAFETENSORS, body


def _json(rng: Random) -> tuple[str, str, bytes]:
    def encoded() -> str:
        text = base64.b64encode(_image(rng)).decode()
        return rng.choice([text, text, text.rstrip("="), f"data:image/png;base64,{text}", text[:-3], f" {text}\r\n"])

    samples = [{"image": encoded(), "prompt": "x", "metadata": dict(METADATA)} for _ in range(rng.choice([0, 1, 1, 3]))]
    return "/v1/score", "application/json", json.dumps(_spoil(rng, {"samples": samples}), default=str).encode()


def _form(rng: Random) -> tuple[str, str, bytes]:
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        name = rng.choice(["image"] * 25 + ["image", "", 'image"; x="', "prompt"])
        parts.append(f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode() + _image(rng))
    parts.append(b'Content-Disposition: form-data; name="metadata"\r\n\r\n' + json.dumps(METADATA).encode())
    if rng.random() < 0.3:
        parts.append(
            rng.choice([b"", b"no head", b'Content-Disposition: form-data; name="prompt"\r\n\r\n\xff', b"\r\n\r\n"])
        )
    rng.shuffle(parts)
    mark = f"--{BOUNDARY}".encode()
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts)
    body += rng.choice([mark + b"--\r\n"] * 5 + [mark, b""])
    boundary = rng.choice([BOUNDARY] * 9 + ["other", "", "x" * 300])
    return "/v1/score", f"multipart/form-data; boundary={boundary}", body


def _check(rng: Random) -> tuple[str, str, bytes]:
    prompts = [{"text": "a circle", "metadata": dict(METADATA)} for _ in range(rng.choice([0, 1, 3]))]
    return "/v1/check", "application/json", json.dumps(_spoil(rng, {"prompts": prompts}), default=str).encode()


MAKERS = {"tensors": _tensors, "json": _json, "form": _form, "check": _check}


@contextmanager
def _opened() -> Iterator[Callable[[Random], Case]]:
    limits = {"max_body_mib": 8, "max_side": 256, "max_samples": 16, "max_megapixels": 4}
    with served(limits=limits) as service:

        def make(rng: Random) -> Case:
            kind = rng.choice(list(MAKERS))
            path, media_type, body = MAKERS[kind](rng)
            done = []
            if rng.random() < 0.35 and body:
                spoil = rng.choice(SPOILING)
                body = spoil(rng, body)
                done.append(spoil.__name__)
            raw = post(path, media_type, body)
            cut = False
            if rng.random() < 0.2:
                raw, how, cut = _other_head(rng, raw)
                done.append(how)
            answer = exchange(service.address, raw, seconds=20, finish=cut)
            outcome = _judged(answer, cut)
            if service.process.poll() is not None:
                outcome = f"the service ended with {service.process.returncode}"
            elif "Traceback" in service.said():
                outcome = "a traceback in the service"
            said = (answer.head + b"\n" + answer.body[:3000]).decode(errors="backslashreplace")
            if outcome not in ("accepted", "refused"):
                said += service.said()[-3000:]
            service.lines.clear()
            return Case(f"request with {kind}", ", ".join(done), outcome, said, repr(raw[:3000]))

        yield make


def _other_head(rng: Random, raw: bytes) -> tuple[bytes, str, bool]:
    """(bytes, what was done, whether the request may not be whole)."""
    head, _, body = raw.partition(b"\r\n\r\n")
    match rng.randrange(4):
        case 0:
            more = rng.choice(ODD_HEADS)
            return head + b"\r\n" + more.encode("latin-1") + b"\r\n\r\n" + body, f"a header {more[:40]!r}", True
        case 1:
            spoil = rng.choice(SPOILING)
            return spoil(rng, head) + b"\r\n\r\n" + body, f"the head: {spoil.__name__}", True
        case 2:
            return raw[: rng.randrange(len(raw))], "cut off", True
        case _:
            line = rng.choice(
                [b"GET /v1/score HTTP/1.1", b"POST /v1/other HTTP/1.1", b"POST http://evil/v1/score HTTP/1.1",
                 b"OPTIONS * HTTP/1.1", b"HEAD /health HTTP/1.1", b"POST /v1/score HTTP/0.9", b"POST /v1/score",
                 b"PRI * HTTP/2.0", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"POST /v1/%00score HTTP/1.1",
                 b"POST /" + b"a" * 70_000 + b" HTTP/1.1", b"post /v1/score HTTP/1.1", b"POST  /v1/score  HTTP/1.1"]
            )  # fmt: skip
            return line + head[head.find(b"\r\n") :] + b"\r\n\r\n" + body, f"the line {line[:40]!r}", True


def _judged(answer: Answer, cut: bool) -> str:
    if answer.status == 0:
        return "refused" if cut else "no answer"
    if answer.status == 200:
        return "accepted"
    if re.search(rb"(?i)content-length: *0\b", answer.head) or not answer.body:
        return "refused" if cut else "an error without words"  # HEAD, and what came before the head was whole
    try:
        error = json.loads(answer.body)["error"]
        kind, message = error["kind"], error["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status} not in our words"
    if answer.status not in REFUSALS and not (answer.status == 500 and kind == "reward"):
        return f"status {answer.status} of kind {kind}"
    if not message or len(message) > LONGEST or not message.replace("\n", "").replace("\t", "").isprintable():
        return "a message that is empty, too long, or has control characters"
    return "refused"


REQUESTS = Subject("requests", _opened)
