"""Invalid responses of servers and workers: each becomes an error with a short message that is safe to print."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.types import Prompt
from dgpo_remote.failures import (
    Busy,
    Down,
    InvalidResponse,
    NotAService,
    Refused,
    RewardLost,
    RewardRaised,
    TooLarge,
    reported_error,
)
from dgpo_remote.messages.blobs import HEADER, Blob, Malformed, pack
from dgpo_remote.messages.prompts import LARGEST, prompts_as_json, stretches
from dgpo_remote.messages.scores import read_examples, read_score_answer
from dgpo_remote.service.http import Client
from dgpo_remote.worker.channel import HEAD, MAGIC, Channel
from dgpo_schemas.service import PROTOCOL

Raw = Callable[..., str]


@pytest.fixture
def raw() -> Iterator[Raw]:
    """`raw(piece, ..., drip=b"")`: a server that sends these bytes to each request, then closes or keeps dripping."""
    made: list[socket.socket] = []
    over = threading.Event()

    def start(*pieces: bytes, drip: bytes = b"") -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)

        def talk(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                for piece in pieces:
                    connection.sendall(piece)
                while drip and not over.wait(0.01):
                    connection.sendall(drip)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=talk, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    over.set()
    for one in made:
        one.shutdown(socket.SHUT_RDWR)
        one.close()


def http(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def error(status: str, kind: Any, message: Any = "so it is", **headers: str) -> bytes:
    return http(json.dumps({"error": {"kind": kind, "message": message}}).encode(), status, **headers)


DEEP = b"[" * 200_000


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", Down, "RemoteProtocolError"),
        (b"\x00\xff" * 500, Down, "RemoteProtocolError"),
        (b"hello from HTTP/0.9\n", Down, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", Down, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\nhello", Down, "Protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", Down, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Down, "RemoteProtocolError"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000 + b"\r\n", Down, "RemoteProtocolError"),
        (b"HTTP/1.1 99999 OK\r\n\r\n", Down, "RemoteProtocolError"),
        (http(status="204 No Content"), Down, "status 204"),
        (http(status="301 Moved", Location="http://u:secret@other:1/a"), InvalidResponse, "to http://other:1/a, which"),
        (http(status="301 Moved", Location="http://u:secret@other:1/\x1b[2J"), Down, "Invalid URL in location header"),
        (http(status="302 Found"), InvalidResponse, "to nowhere, which is not followed"),
        (http(b"x" * 300_000, "500 Oops"), Down, "status 500: 'xxxx"),
        (http(b"\x1b]0;title\x07" + b"\xff" * 10, "500 Oops"), Down, r"status 500: '\x1b]0;title\x07"),
        (http(b"", "500 Oops"), Down, "status 500: nothing"),
        (http(DEEP, "500 Oops"), Down, "status 500: '[[["),
        (error("500 Oops", "internal"), Down, "so it is"),
        (error("500 Oops", ["reward"]), Down, "so it is"),
        (error("500 Oops", None), Down, "so it is"),
        (error("400 Bad", "a kind of tomorrow"), Down, "so it is"),
        (error("500 Oops", "reward", "\x1b[31m\ud83d\u202e" + "x" * 9000), RewardRaised, r"\x1b[31m\ud83d\u202exxx"),
        (error("500 Oops", "memory", {"a": 1}), OutOfMemory, "status 500: '{"),
        (error("400 Bad", "request"), Refused, "so it is"),
        (error("403 No", "origin"), Refused, "so it is"),
        (error("403 No", "token"), Refused, "so it is (set service.token_variable"),
        (error("413 Large", "size"), TooLarge, "so it is"),
        (http(b"<html>", "413 Large"), TooLarge, "status 413: '<html>'"),
        (http(b"<html>", "404 Where"), NotAService, "status 404: '<html>'"),
        (error("503 Later", "busy", Retry_After="nan"), Busy, "so it is"),
        (error("429 Later", "busy", Retry_After="-1"), Busy, "so it is"),
        (error("503 Later", "busy", Retry_After="9" * 5000), Busy, "so it is"),
        (http(b"{}", Content_Encoding="gzip\x1b"), InvalidResponse, r"Content-Encoding gzip\x1b"),
        (http(b"{}", Content_Encoding="br"), InvalidResponse, "Content-Encoding br"),
        (http(b"[]"), InvalidResponse, "a JSON object: '[]'"),
        (http(DEEP), InvalidResponse, "a JSON object: '[[["),
        (http(b'{"a": ' + b"9" * 5000 + b"}"), InvalidResponse, "a JSON object"),
        (http(b"x" * 9_000_000), Down, "the response is larger than 8 MiB"),
    ],
)  # fmt: skip
def test_invalid_responses(raw: Raw, answer: bytes, kind: type[Exception], words: str) -> None:
    url = raw(answer)
    client = Client("rewards.0", None, 1, [url])
    with pytest.raises(kind) as caught:
        client.ask_json("GET", f"{url}/v1/reward", timeout=5)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert words in message
    assert len(message) <= 2100
    assert "secret" not in message
    assert all(c.isprintable() or c == "\n" for c in message)
    if isinstance(caught.value, Busy):
        assert 0 < caught.value.seconds <= 30
    client.close()


@pytest.mark.parametrize(
    ("pieces", "drip"),
    [
        ([], b"x"),
        ([b"HTTP/1.1 200 OK\r\n"], b"A: b\r\n"),
        ([], b"HTTP/1.1 103 Wait\r\n\r\n"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"], b"x"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], b"1\r\nx\r\n"),
        ([b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n"], b"1\r\nx\r\n"),
    ],
)
def test_dripping_responses_time_out(raw: Raw, pieces: list[bytes], drip: bytes) -> None:
    """Each byte arrives in time, but never the whole response."""
    url = raw(*pieces, drip=drip)
    client = Client("rewards.0", None, 1, [url])
    with pytest.raises(Down):
        client.ask("GET", url, timeout=0.3)
    client.close()


def test_sending_to_a_server_that_does_not_read_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        client = Client("rewards.0", None, 1, [url])
        with pytest.raises(Down, match=r"no complete response within 0.3 s \(WriteTimeout\)"):
            client.ask("POST", url, timeout=0.3, content=bytes(32 * 2**20))
        client.close()


def test_the_credentials_of_a_url_are_sent_but_not_logged(raw: Raw, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    url = raw(http(b"{}")).replace("http://", "http://name:secret@")
    client = Client("rewards.0", None, 1, [url])
    assert client.ask_json("GET", f"{url}/v1/reward", timeout=5) == {}
    assert "v1/reward" in caplog.text
    assert "secret" not in caplog.text
    client.close()


@pytest.mark.parametrize("token", ["a b", "naïve", "a\nb", "\x07"])
def test_invalid_tokens_are_refused(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(UserError, match=r"token_variable: the environment variable REWARD_TOKEN is not a valid") as e:
        Client("rewards.0", "REWARD_TOKEN", 1, ["http://gpu:1"])
    assert token not in str(e.value)


# -- blobs ----------------------------------------------------------------------------------------------------------


def framed(media: Any, data: int = 48, head: Any = None) -> bytes:
    whole = head or json.dumps({"__metadata__": {"dgpo": "{}"}, "media": media}).encode()
    return struct.pack("<Q", len(whole)) + whole + bytes(data)


GOOD = {"dtype": "F32", "shape": [1, 3, 2, 2], "data_offsets": [0, 48]}


def test_a_valid_blob() -> None:
    assert Blob(framed(GOOD)).shapes == {"media": (1, 3, 2, 2)}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [1.0, 3, 2, 2]}, {"shape": [True, 3, 2, 2]}, {"shape": ["1", 3, 2, 2]}, {"shape": [-1, 3, 2, -2]},
        {"shape": [float("inf"), 3, 2, 2]}, {"shape": [float("nan")]}, {"shape": [2**62, 4, 3]}, {"shape": [2**64, 0]},
        {"shape": None}, {"shape": {"0": 1}}, {"shape": [[1]]}, {"shape": [1] * 40 + [12]}, {"shape": [10**400]},
        {"dtype": 3}, {"dtype": None}, {"dtype": ["F32"]}, {"data_offsets": [0, 44]}, {"data_offsets": [4, 52]},
        {"data_offsets": [48, 0]}, {"data_offsets": [0.0, 48.0]}, {"data_offsets": [0]}, {"data_offsets": "ab"},
        {"data_offsets": [False, 48]}, {"data_offsets": [0, float("inf")]}, {"more": 1},
    ],
)  # fmt: skip
def test_invalid_tensor_descriptions_are_refused(changes: Any) -> None:
    with pytest.raises(Malformed):
        Blob(framed(GOOD | changes))


@pytest.mark.parametrize(
    "head",
    [
        b'{"__metadata__": {"dgpo": "{}"}, "a": %(a)s, "a": %(a)s}',
        b'{"__metadata__": {"dgpo": "{}"}, "__metadata__": {"dgpo": "{}"}, "a": %(a)s}',
        b'{"__metadata__": {"dgpo": "{}"}, "a": %(a)s, "b": %(a)s}',
        b'{"__metadata__": {"dgpo": "{}"}, "a": {"dtype": "U8", "shape": [9], "shape": [48], "data_offsets": [0, 48]}}',
        b'{"__metadata__": ["dgpo"], "a": %(a)s}',
        b'{"__metadata__": {"dgpo": "{}"}, "a": [[[]]]}',
    ],
)  # fmt: skip
def test_duplicate_keys_and_overlapping_tensors_are_refused(head: bytes) -> None:
    a = b'{"dtype": "F32", "shape": [12], "data_offsets": [0, 48]}'
    with pytest.raises(Malformed):
        Blob(framed(None, head=head.replace(b"%(a)s", a)))


def test_headers_are_limited() -> None:
    with pytest.raises(Malformed, match=r"the safetensors header has 32 MiB; at most 32"):
        Blob(struct.pack("<Q", HEADER + 1) + bytes(HEADER + 1))
    with pytest.raises(Malformed, match="at most 4096"):
        Blob(pack({}, {str(i): torch.zeros(0) for i in range(4097)}))


def test_responses_of_the_wrong_kind() -> None:
    scores = {"values": torch.zeros(1), "missing": torch.zeros(1, dtype=torch.bool)}
    for diagnostics in (3, "x", None, {"a": 1}, [3], ["x"], [None]):
        with pytest.raises(Malformed):
            read_score_answer(Blob(pack({"protocol": PROTOCOL, "diagnostics": diagnostics}, scores)))
    for examples in (3, "x", None, {"a": 1}, [3], [{"name": 5, "prompt": {"text": "x"}, "good": True}]):
        with pytest.raises(Malformed):
            read_examples(Blob(pack({"protocol": PROTOCOL, "examples": examples}, {"0": torch.zeros(3, 1, 1)})))
    for body in ({"error": 5}, {"error": "\x1b[1m"}, {"error": {"kind": [], "message": {}}}, {"error": [1]}):
        kind, message = reported_error(json.dumps(body).encode()) or ("none", "")
        assert kind
        assert message.isprintable()


def test_a_frame_that_is_too_large() -> None:
    local, remote = socket.socketpair()
    with local, remote:
        remote.sendall(HEAD.pack(MAGIC, 2**62))
        with pytest.raises(EOFError, match="does not speak this protocol"):
            Channel(local).receive()


# -- splitting large requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([], 10, []),
        ([1] * 5, 2, [2, 2, 1]),
        ([1] * 5, 5, [5]),
        ([200_000] * 5, 10, [2, 2, 1]),
        ([600_000, 1, 600_000, 1], 10, [1, 1, 1, 1]),
    ],
)
def test_prompts_are_split_into_slices(lengths: list[int], most: int, expected: list[int]) -> None:
    prompts = [Prompt("x" * length) for length in lengths]
    parts = [prompts[part] for part in stretches(prompts, most)]
    assert [len(part) for part in parts] == expected
    assert [one for part in parts for one in part] == prompts
    assert all(len(json.dumps(prompts_as_json(part))) <= LARGEST for part in parts if len(part) > 1)


def test_many_prompts_are_split_over_several_requests(
    serve: Callable[..., Any], make: Callable[..., RewardModel]
) -> None:
    server = serve("conv")
    sizes: list[int] = []
    reward = make("conv", service={"urls": [server.url]})
    client: Any = reward._client  # type: ignore[attr-defined]
    ask = client.ask

    def counted(method: str, url: str, **options: Any) -> bytes:
        sizes.append(len(options.get("content") or b""))
        answer: bytes = ask(method, url, **options)
        return answer

    client.ask = counted
    reward.check_prompts([Prompt("good")] * 2500)
    assert len(sizes) == 3
    with pytest.raises(UserError, match="is a bad one"):
        reward.check_prompts([*[Prompt("good")] * 2500, Prompt("bad")])
    sizes.clear()
    media = torch.rand(6, 3, 8, 8)
    prompts = [Prompt("x" * 200_000)] * 6
    assert reward.score(media, prompts).values.shape == (6,)
    assert len(sizes) == 3
    assert max(sizes) < LARGEST + 2000
    with pytest.raises(RewardLost, match=r"has 6 samples for 5 prompts"):
        reward.score(media, prompts[:5])
