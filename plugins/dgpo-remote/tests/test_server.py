"""`dgpo serve`: responses to valid and invalid requests, after which the service stays up."""

from __future__ import annotations

import base64
import json
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.types import Prompt
from dgpo_remote.messages.blobs import Blob, pack
from dgpo_remote.messages.scores import read_examples, read_score_answer, score_request
from dgpo_schemas.service import PROTOCOL, REQUEST, SAFETENSORS, RewardDescription, ServiceLimits

Serve = Callable[..., Any]
Make = Callable[..., RewardModel]
Samples = Callable[..., tuple[Tensor, list[Prompt]]]
TOKEN = "a long secret"


@pytest.fixture(scope="module")
def server(serve_all_along: Serve) -> Any:
    """A server with a token and low limits."""
    limits = {"max_body_mib": 1, "max_side": 64, "max_frames": 3, "max_samples": 8}
    return serve_all_along("moody", token=TOKEN, limits=limits)


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20) as made:
        yield made


@pytest.fixture
def here(make: Make) -> RewardModel:
    return make("moody")


def post_tensors(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    return client.post("/v1/score", content=body, headers={"Content-Type": SAFETENSORS} | headers)


def picture(size: tuple[int, int] = (8, 6), mode: str = "RGB", kind: str = "PNG", color: Any = None) -> bytes:
    file = BytesIO()
    Image.new(mode, size, color if color is not None else 200).save(file, kind)
    return file.getvalue()


def still_serves(client: httpx.Client) -> None:
    answer = post_tensors(client, score_request(torch.zeros(1, 3, 8, 8), [Prompt("x")]))
    assert answer.status_code == 200


# -- valid requests -------------------------------------------------------------------------------------------------
def test_monitoring_needs_no_token(server: Any) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "alive"}
    assert httpx.get(f"{server.url}/ready").json() == {"status": "ready"}
    assert httpx.get(f"{server.url}/metrics").status_code == 200


def test_responses_echo_the_request_id(server: Any, client: httpx.Client) -> None:
    for method, path in (("GET", "/ready"), ("GET", "/v1/reward"), ("POST", "/v1/score"), ("GET", "/nowhere")):
        assert client.request(method, path, headers={REQUEST: f"{path} 7"}).headers[REQUEST] == f"{path} 7"
    assert REQUEST not in client.get("/ready").headers


def test_the_reward_is_described(client: httpx.Client) -> None:
    found = RewardDescription.model_validate(client.get("/v1/reward").json())
    assert (found.protocol, found.use, found.range, found.group_by) == (PROTOCOL, "moody", (None, None), "tag")
    assert found.options == {"seed": 0, "scale": 1.0}
    assert set(found.media) == {"image", "video"}
    assert found.limits is not None
    assert found.limits.max_side == 64


@pytest.mark.parametrize("kind", [SAFETENSORS, "application/x-safetensors", "Application/X-Safetensors; v=1"])
def test_tensors_are_scored(client: httpx.Client, here: RewardModel, samples: Samples, kind: str) -> None:
    media, prompts = samples(5)
    answer = client.post("/v1/score", content=score_request(media, prompts), headers={"Content-Type": kind})
    assert answer.headers["content-type"] == SAFETENSORS
    assert read_score_answer(Blob(answer.content)).values.tolist() == here.score(media, prompts).values.tolist()


def test_tensors_get_a_json_response_on_request(client: httpx.Client, here: RewardModel, samples: Samples) -> None:
    media, prompts = samples(2)
    media[1] = torch.nan
    answer = post_tensors(client, score_request(media, prompts), Accept="application/json")
    data = answer.json()
    assert data["values"] == [here.score(media, prompts).values.tolist()[0], None]
    assert data["missing"] == [False, True]
    assert data["diagnostics"][1]["text"] == prompts[1].text


def test_images_are_scored_as_curl_sends_them(client: httpx.Client, here: RewardModel) -> None:
    """With several sizes and modes, one prompt for all, and metadata for each."""
    files = [
        ("image", ("a.png", picture())),
        ("image", ("b.jpg", picture((16, 16), kind="JPEG", color="red"))),
        ("image", ("c.png", picture(mode="L"))),
        ("image", ("d.png", picture(mode="RGBA", color=(200, 200, 200, 255)))),
    ]
    metadata = [json.dumps({"tag": tag}) for tag in "abcd"]
    answer = client.post("/v1/score", files=files, data={"prompt": "one", "metadata": metadata})
    assert answer.status_code == 200, answer.text
    data = answer.json()
    assert [d["seen"]["tag"] for d in data["diagnostics"]] == ["a", "b", "c", "d"]
    # The first is 200/255 in red only; the third and the fourth are the same gray.
    first, _, third, fourth = data["values"]
    media = torch.zeros(1, 3, 6, 8)
    media[:, 0] = 200 / 255
    assert first == pytest.approx(here.score(media, [Prompt("one")]).values.item(), abs=1e-6)
    assert (
        third
        == fourth
        == pytest.approx(here.score(torch.full((1, 3, 6, 8), 200 / 255), [Prompt("one")]).values.item(), abs=1e-6)
    )


def test_images_are_scored_as_json(client: httpx.Client, here: RewardModel) -> None:
    sample = {"image": base64.b64encode(picture(mode="L")).decode(), "prompt": "two", "metadata": {"n": 1}}
    data = client.post("/v1/score", json={"samples": [sample, sample | {"prompt": "raised"}]}).json()
    media = torch.full((1, 3, 6, 8), 200 / 255)
    assert data["values"][0] == pytest.approx(here.score(media, [Prompt("two")]).values.item(), abs=1e-6)
    assert data["missing"] == [False, False]
    assert client.post("/v1/score", json={"samples": []}).json()["values"] == []


def test_images_get_a_safetensors_response_on_request(client: httpx.Client) -> None:
    answer = client.post("/v1/score", files={"image": ("a.png", picture())}, headers={"Accept": SAFETENSORS})
    assert read_score_answer(Blob(answer.content)).values.shape == (1,)


def test_prompts_are_checked(client: httpx.Client) -> None:
    assert client.post("/v1/check", json={"prompts": [{"text": "x"}]}).json() == {"ok": True, "message": None}
    answer = client.post("/v1/check", json={"prompts": [{"text": "bad"}]}).json()
    assert answer == {"ok": False, "message": "the prompt 'bad' is a bad one"}


def test_examples_are_served(client: httpx.Client) -> None:
    assert [e.name for e in read_examples(Blob(client.get("/v1/examples").content))] == ["bright", "dark"]


def test_metrics_count(server: Any, client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    names = ['dgpo_requests_total{path="/v1/score",status="200"}', "dgpo_samples_total", "dgpo_missing_total"]
    before = [value(name) for name in names]
    prompts = [Prompt("x", {"missing": i == 1}) for i in range(3)]
    post_tensors(client, score_request(torch.zeros(3, 3, 8, 8), prompts))
    assert [value(name) - b for name, b in zip(names, before, strict=True)] == [1, 3, 1]
    assert value("dgpo_queue_length") == value("dgpo_requests_under_way") == 0


# -- invalid requests -----------------------------------------------------------------------------------------------
GOOD = {"protocol": PROTOCOL, "prompts": [{"text": "x"}]}


def tensors(*shape: int, dtype: torch.dtype = torch.float32, prompts: int | None = None, **header: Any) -> bytes:
    texts = [{"text": "x"}] * (shape[0] if prompts is None else prompts)
    return pack(GOOD | {"prompts": texts} | header, {"media": torch.zeros(*shape, dtype=dtype)})


class Unpicklable:
    """Raises SystemExit when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('unpickled')",)


def pickled() -> bytes:
    import pickle

    return pickle.dumps(Unpicklable())


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "not in the safetensors format"),
        (b"hello", 400, "not in the safetensors format"),
        (pickled(), 400, "not in the safetensors format"),
        (struct.pack("<Q", 2**62) + b"{}", 400, "not in the safetensors format"),
        (safetensors.torch.save({"media": torch.zeros(1, 3, 8, 8)}), 400, "no string `dgpo`"),
        (tensors(1, 3, 8, 8)[:-8], 400, "damaged"),
        (tensors(1, 3, 8, 8, protocol=99), 400, "uses protocol version 99"),
        (tensors(1, 3, 8, 8, alone="perhaps"), 400, "alone: must be true or false"),
        (tensors(1, 3, 8, 8, dtype=torch.float64), 422, "got F64"),
        (tensors(1, 3, 8, 8, dtype=torch.int32), 422, "got I32"),
        (tensors(3, 8, 8), 422, "shape"),
        (tensors(1, 1, 8, 8), 422, "shape"),
        (tensors(1, 3, 0, 8), 422, "8x0 pixels is empty"),
        (tensors(2, 3, 8, 8, prompts=3), 422, "2 samples for 3 prompts"),
        (tensors(9, 3, 8, 8), 413, "max_samples"),
        (tensors(1, 4, 3, 8, 8), 413, "max_frames"),
        (tensors(1, 3, 8, 65), 413, "max_side"),
        (tensors(1, 3, 300, 300), 413, "larger than 1 MiB"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(client: httpx.Client, body: bytes, status: int, message: str) -> None:
    answer = post_tensors(client, body)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
    still_serves(client)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that declares an image of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def image(data: bytes, *more: bytes) -> Any:
    return {"files": [("image", (f"{i}.png", one)) for i, one in enumerate((data, *more))]}


def coded(data: bytes) -> Any:
    return {"json": {"samples": [{"image": base64.b64encode(data).decode()}]}}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (image(b""), 400, "image '0.png': the file is empty"),
        (image(b"GIF89a" + b"0" * 50), 400, "image '0.png': "),
        (image(b"dear diary"), 400, "image '0.png': not a readable image or video"),
        (image(b"dear diary", b"GIF"), 400, "(the other 1 cannot be read either)"),
        (image(picture()[:45]), 400, "0.png"),
        (image(bomb(40_000, 40_000)), 413, "decode to more than 134,217,728 pixels"),
        (image(bomb(10_000, 10_000)), 413, "max_side"),
        (image(bomb(65, 1)), 413, "max_side"),
        (image(bomb(0, 5)), 400, "0.png"),
        (image(picture((65, 2)), picture((65, 2))), 413, "'0.png': 65x2 pixels"),
        (image(*[picture()] * 9), 413, "max_samples"),
        (image(*[b"x"] * 12), 413, "max_samples"),
        (image(*[b"x"] * 100), 413, "a form of more than 27 parts"),
        (image(picture(), picture()) | {"data": {"prompt": ["a", "b", "c"]}}, 422, "3 `prompt` fields for 2 images"),
        (image(picture()) | {"data": {"metadata": "{"}}, 400, "`metadata` is not JSON"),
        (image(picture()) | {"data": {"metadata": "[1]"}}, 422, "`metadata` must be a JSON object"),
        (image(picture()) | {"data": {"metadata": "[" * 100_000}}, 400, "`metadata` is not JSON"),
        (image(picture()) | {"data": {"promt": "x"}}, 422, "unknown field 'promt'"),
        ({"files": {"photo": ("a.png", picture())}}, 422, "unknown field 'photo'"),
        ({"files": {"prompt": ("a.txt", b"x")}}, 422, "missing field `image`"),
        ({"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data"}}, 400, "not multipart/form-data"),
        ({"content": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "multipart"),
        (coded(b"no image"), 400, "samples.0.image: not a readable image"),
        (coded(bomb(40_000, 40_000)), 413, "samples.0.image"),
        ({"json": {"samples": [{"image": "%%%"}]}}, 400, "samples.0.image: is not base64"),
        ({"json": {"samples": [{}]}}, 422, "samples.0.image: is missing"),
        ({"json": {"images": []}}, 422, "samples: is missing"),
        ({"json": []}, 422, "must be a JSON object"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "the body must be"),
        ({"content": pickled(), "headers": {"Content-Type": "application/octet-stream"}}, 415, "the body must be"),
        ({"content": b"x"}, 415, "the body must be"),
        ({"content": b"x", "headers": {"Content-Type": SAFETENSORS, "Content-Encoding": "gzip"}}, 415, "gzip"),
    ],
)  # fmt: skip
def test_images_that_are_refused(client: httpx.Client, request_: Any, status: int, message: str) -> None:
    answer = client.post("/v1/score", **request_)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
    still_serves(client)


def animated(count: int, side: int) -> bytes:
    file = BytesIO()
    frames = [Image.new("L", (side, side), i) for i in range(count)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        ([picture((1000, 1000), "L")] * 2, True),
        ([picture((1000, 1000), "L")] * 2 + [picture((1, 1))], False),
        ([animated(3, 900)], False),
        ([bomb(1000, 1000)] * 3, False),  # refused before decoding finds them broken
    ],
)
def test_the_total_number_of_pixels_is_limited(serve: Serve, files: list[bytes], fits: bool) -> None:
    server = serve("moody", limits={"max_megapixels": 2})
    samples = [coded(one)["json"]["samples"][0] for one in files]
    with httpx.Client(base_url=server.url, timeout=20) as client:
        for request in (image(*files), {"json": {"samples": samples}}):
            answer = client.post("/v1/score", **request)
            if fits:
                assert answer.status_code == 200, answer.text
            else:
                error = answer.json()["error"]
                assert (answer.status_code, error["kind"]) == (413, "size")
                assert "more than 2 million" in error["message"]
                assert "(limits.max_megapixels)" in error["message"]
        still_serves(client)


def test_a_micro_batch_of_training_is_within_the_limit() -> None:
    assert 96 * 1024**2 <= ServiceLimits().max_megapixels * 1_000_000 < 8 * 4096**2


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"])
def test_requests_without_the_token_are_refused(server: Any, client: httpx.Client, given: str) -> None:
    headers = {"Authorization": given.encode("latin-1")} if given else {}
    for method, path in [("GET", "/v1/reward"), ("GET", "/v1/examples"), ("POST", "/v1/check"), ("POST", "/v1/score")]:
        answer = httpx.request(method, f"{server.url}{path}", headers=headers, content=b"x" * 100)  # type: ignore[arg-type]
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text
    still_serves(client)


def test_a_body_without_content_length_is_limited(client: httpx.Client) -> None:
    """An endless chunked body is refused at the limit."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 100:
            sent += 1
            yield bytes(2**18)

    answer = client.post("/v1/score", content=endless(), headers={"Content-Type": SAFETENSORS})
    assert answer.status_code == 413
    assert "larger than 1 MiB" in answer.json()["error"]["message"]
    still_serves(client)


@pytest.mark.parametrize("raw", [b"\x00\x01\x02\r\n\r\n", b"POST /v1/score HTTP/1.1\r\nContent-Length: x\r\n\r\n"])
def test_malformed_http_is_refused(server: Any, client: httpx.Client, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        connection.sendall(raw)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    still_serves(client)


def test_a_client_that_disconnects(server: Any, client: httpx.Client) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {SAFETENSORS}\r\n"
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\nhalf".encode())
    still_serves(client)
    assert server.service.inside == 0


def test_other_paths_and_methods(client: httpx.Client) -> None:
    answer = client.get("/v2/score")
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "GET /v2/score: Not Found")
    assert client.get("/v1/score").status_code == 405


def test_a_reward_that_fails_is_reported(client: httpx.Client) -> None:
    answer = post_tensors(client, score_request(torch.zeros(2, 3, 8, 8), [Prompt("raise"), Prompt("x")]))
    error = {"kind": "reward", "message": "RuntimeError: the lamp is broken"}
    assert (answer.status_code, answer.json()) == (500, {"error": error})
    answer = post_tensors(client, score_request(torch.zeros(2, 3, 8, 8), [Prompt("leave")] * 2))
    assert answer.json()["error"]["message"] == "SystemExit: no license"
    answer = post_tensors(client, score_request(torch.zeros(2, 3, 8, 8), [Prompt("short")] * 2))
    assert "returned values (1,)" in answer.json()["error"]["message"]
    still_serves(client)


def test_videos_are_refused_by_a_reward_of_images(serve: Serve) -> None:
    with httpx.Client(base_url=serve("brightness").url) as client:
        answer = post_tensors(client, tensors(1, 2, 3, 8, 8))
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == "brightness does not score videos; it scores images"
        still_serves(client)
