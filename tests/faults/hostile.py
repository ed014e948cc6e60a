"""Hostile requests, each as the bytes of a connection: what somebody sends who wants a service to stop."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from io import BytesIO

import torch
from PIL import Image

from dgpo_core.types import Prompt
from dgpo_remote.messages.blobs import LENGTH
from dgpo_remote.messages.scores import score_request
from dgpo_schemas.service import PROTOCOL, SAFETENSORS
from tests.faults.serving import post

__all__ = [
    "bombs",
    "broken_tensors",
    "deep_json",
    "giants",
    "long_header",
    "many_headers",
    "many_parts",
    "many_prompts",
    "many_scans",
    "nested_json",
    "sound",
    "tiny_chunks",
    "trailers",
]

METADATA = {"tag": "single_object", "include": [{"class": "circle", "count": 1}]}
MARK = "dgpo-boundary"
FORM = f"multipart/form-data; boundary={MARK}"


def _form(*images: bytes) -> bytes:
    parts = [
        f'--{MARK}\r\nContent-Disposition: form-data; name="image"; filename="{i}.png"\r\n\r\n'.encode() + image
        for i, image in enumerate(images)
    ]
    reported = f'--{MARK}\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{json.dumps(METADATA)}'.encode()
    return post("/v1/score", FORM, b"\r\n".join([*parts, reported, f"--{MARK}--\r\n".encode()]))


def sound() -> bytes:
    """What anybody may ask: the score of one small image."""
    made = BytesIO()
    Image.new("RGB", (64, 64), "white").save(made, "PNG")
    return _form(made.getvalue())


def many_prompts(count: int = 1_000_000) -> bytes:
    """A check of a million prompts."""
    return post("/v1/check", "application/json", b'{"prompts":[' + b",".join([b'{"text":"x"}'] * count) + b"]}")


def long_header(count: int = 1_000_000) -> bytes:
    """Tensors whose JSON header has a million prompts."""
    said = f'{{"protocol":{PROTOCOL},"prompts":[' + ",".join(['{"text":"x"}'] * count) + "]}"
    head = {"__metadata__": {"dgpo": said}, "media": {"dtype": "U8", "shape": [1, 3, 1, 1], "data_offsets": [0, 3]}}
    text = json.dumps(head).encode()
    return post("/v1/score", SAFETENSORS, len(text).to_bytes(LENGTH, "little") + text + b"\0\0\0")


def many_scans(scans: int = 40_000, side: int = 4096) -> bytes:
    """A progressive JPEG that sends a tolerance of empty coefficients in scan after scan: 35 bytes each, and a pass
    over all blocks."""
    made = BytesIO()
    Image.new("L", (side, side), 128).save(made, "JPEG", progressive=True, quality=50)
    raw = made.getvalue()
    first = raw.find(b"\xff\xda")
    tolerance = raw.find(b"\xff\xda", first + 2)
    end = next(i for i in range(tolerance + 2, len(raw)) if raw[i] == 0xFF and raw[i + 1] in (0xDA, 0xC4, 0xD9))
    return _form(raw[:end] + raw[tolerance:end] * scans + b"\xff\xd9")


def bombs(side: int = 16_000) -> list[bytes]:
    """Small files that unpack to a lot: pixels, frames, texts."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(*chunks: bytes) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])

    def head(width: int, height: int) -> bytes:
        return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))

    rows = zlib.compress(bytes((3 * side + 1) * side // 8), 9)
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9))
    gif = BytesIO()
    frames = [Image.new("P", (64, 64), i % 256) for i in range(2000)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    small = chunk(b"IDAT", zlib.compress(bytes(13)))
    claims = png(head(2**31 - 1, 2**31 - 1), small)
    return [_form(one) for one in (png(head(side, side), chunk(b"IDAT", rows)), png(text, head(2, 2)),
                                   png(head(2, 2), text, small), gif.getvalue(), claims)]  # fmt: skip


def deep_json() -> list[bytes]:
    """JSON that parsers meet badly: brackets, digits, keys."""
    texts = [
        b'{"prompts":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
        b'{"prompts":[' + b"9" * 5_000_000 + b"]}",
        b'{"prompts":[{"text":"x","metadata":{' + b",".join(b'"%d":[[]]' % i for i in range(400_000)) + b"}}]}",
        b'{"samples":[' + b",".join([b"{}"] * 1_000_000) + b"]}",
    ]
    return [post(path, "application/json", text) for text in texts for path in ("/v1/check", "/v1/score")]


def many_parts(count: int = 300_000) -> bytes:
    """A form of very many parts."""
    part = f'--{MARK}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx\r\n'.encode()
    return post("/v1/score", FORM, part * count + f"--{MARK}--\r\n".encode())


def giants(mib: int = 250) -> list[bytes]:
    """Bodies near the limit: base64, tensors, a form, noise."""
    size = mib << 20
    text = base64.b64encode(bytes(size * 3 // 4 - 1000))
    side = 1024
    count = size // (3 * side * side)
    media = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    return [
        post("/v1/score", "application/json", b'{"samples":[{"image":"' + text + b'"}]}'),
        post("/v1/score", SAFETENSORS, score_request(media, [Prompt("x", METADATA)] * count)),
        _form(bytes(size - 1000)),
        post("/v1/score", SAFETENSORS, bytes(size)),
    ]


def broken_tensors() -> list[bytes]:
    """Tensors with numbers that are none, and headers that lie."""
    media = torch.full((4, 3, 64, 64), torch.nan)
    made = [score_request(media, [Prompt("x", METADATA)] * 4)]
    for shape in (
        "[Infinity,3,1,1]",
        "[1e999,3,1,1]",
        "[-1,3,1,1]",
        "[1,3,99999999999,1]",
        '["1",3,1,1]',
        "[true,3,1,1]",
    ):
        said = json.dumps(json.dumps({"protocol": PROTOCOL, "prompts": [{"text": "x"}]}))
        text = (
            f'{{"__metadata__":{{"dgpo":{said}}},"media":{{"dtype":"F32","shape":{shape},"data_offsets":[0,12]}}}}'
        ).encode()
        made.append(len(text).to_bytes(LENGTH, "little") + text + bytes(12))
    return [post("/v1/score", SAFETENSORS, body) for body in made]


CHUNKED = (
    b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def tiny_chunks(count: int = 200_000) -> list[bytes]:
    """Bodies of a byte at a time, with and without extensions, and of as small chunks as are taken."""
    pieces = [b"1\r\n \r\n" * count, b"1;extension=value\r\n \r\n" * count, b"42\r\n" + b" " * 66 + b"\r\n"]
    pieces[2] *= count // 2
    return [CHUNKED + one + b"0\r\n\r\n" for one in pieces]


def trailers(count: int = 200_000) -> list[bytes]:
    """A body whose trailers do not end, or are as many as are taken."""
    return [CHUNKED + b"2\r\n{}\r\n0\r\n" + b"x: y\r\n" * many + b"\r\n" for many in (count, 500)]


def many_headers(count: int = 127) -> list[bytes]:
    """As many headers as a head may have, and more; short, long, folded."""
    first = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    lines = [
        b"x: y\r\n" * count,
        b"x: " + b"y" * 120 + b"\r\n",
        b"x: y\r\n z\r\n" * (count // 2),
        b"x: y\r\n" * 100_000,
    ]
    lines[1] *= count
    return [first + one + b"\r\n" for one in lines]


def nested_json(kib: int = 1024) -> list[bytes]:
    """Checks of just as much JSON as may be sent: nested, in many values, in long numbers."""
    most = kib * 1024 - 100

    def check(piece: bytes) -> bytes:
        return b'{"prompts":[{"text":"x","metadata":{"a":[' + b",".join([piece] * (most // (len(piece) + 1))) + b"]}}]}"

    pieces = [
        b"[" * 60 + b"]" * 60,
        b'{"a":' * 60 + b"1" + b"}" * 60,
        b"[]",
        b"{}",
        b"1",
        b"9" * 4000,
        b'"\\ud83d\\ude00"',
    ]
    texts = [*map(check, pieces), b'{"prompts":' + b"[" * (most // 2) + b"]" * (most // 2) + b"}"]
    return [post("/v1/check", "application/json", text) for text in texts]
