"""Messages: round trips are bit-exact, and malformed messages are refused before tensors are created."""

from __future__ import annotations

import contextlib
import json
import re
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dgpo_remote
from dgpo_core.training.scores import plain
from dgpo_core.types import Example, Prompt, Scores
from dgpo_remote.messages.blobs import Blob, Malformed, OtherProtocol, Unfit, pack
from dgpo_remote.messages.scores import (
    example_blob,
    read_examples,
    read_score_answer,
    read_score_request,
    score_answer,
    score_request,
)
from dgpo_schemas.service import PROTOCOL


def through(media: Tensor, prompts: list[Prompt]) -> Any:
    return read_score_request(Blob(score_request(media, prompts)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (0, 3, 5, 7), (2, 4, 3, 5, 7), (2, 0, 3, 5, 7), (1, 3, 1, 1), (2, 3, 0, 0)]
)
def test_media_arrive_unchanged(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    media = torch.randn(shape).to(dtype)
    request = through(media, [Prompt("x")] * shape[0])
    assert request.media.dtype == dtype
    assert request.media.shape == shape
    assert request.media.contiguous().view(torch.uint8).tolist() == media.view(torch.uint8).tolist()
    assert request.alone


def test_special_floats_arrive_unchanged() -> None:
    media = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45] * 3).view(1, 3, 2, 2)
    assert through(media, [Prompt("x")]).media.view(torch.int32).tolist() == media.view(torch.int32).tolist()


def test_uint8_media_are_scaled_to_0_1() -> None:
    media = torch.tensor([[0, 51, 255]], dtype=torch.uint8).view(1, 3, 1, 1)
    assert through(media, [Prompt("x")]).media.flatten().tolist() == [0.0, torch.tensor(0.2).item(), 1.0]


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_strides_arrive_unchanged(order: tuple[int, ...]) -> None:
    """Sums over memory in another order differ in the last bits."""
    shape = [2, 3, 6, 7]
    stored = torch.rand([shape[o] for o in order])
    media = stored.permute([order.index(i) for i in range(4)])
    assert media.shape == tuple(shape)
    arrived = through(media, [Prompt("x")] * 2).media
    assert torch.equal(arrived, media)
    assert arrived.stride() == media.stride()
    assert arrived.data_ptr() % 64 == 0, "math libraries return the same bits for aligned memory only"


def test_prompts_and_metadata_arrive() -> None:
    metadata = MappingProxyType({"include": ({"class": "a", "n": 1.5},), "none": None, "ok": True})
    sent = [Prompt('a "quoted" naïve 猫 \ud800', metadata), Prompt("")]
    first, second = through(torch.zeros(2, 3, 1, 1), sent).prompts
    assert first.text == sent[0].text
    assert first.metadata == {"include": [{"class": "a", "n": 1.5}], "none": None, "ok": True}
    assert second == Prompt("", {})


def test_scores_arrive_unchanged() -> None:
    values = torch.tensor([0.1, float("nan"), -3.4e38, 1e-45])
    reported = ({"a": (1, 2), "t": torch.tensor([1.5]), "n": float("inf")}, {}, {}, {"p": Path("x")})
    arrived = read_score_answer(Blob(score_answer(Scores(values, values.isnan(), reported))))
    assert arrived.values.view(torch.int32).tolist() == values.view(torch.int32).tolist()
    assert arrived.missing.tolist() == [False, True, False, False]
    assert arrived.diagnostics == ({"a": [1, 2], "t": [1.5], "n": float("inf")}, {}, {}, {"p": "x"})
    # The receiver validates these.
    odd = read_score_answer(Blob(score_answer(Scores(torch.zeros(3, 1).double(), torch.zeros(2).long()))))
    assert (odd.values.shape, odd.values.dtype, odd.missing.dtype) == ((3, 1), torch.float64, torch.int64)


def test_examples_arrive() -> None:
    images = torch.rand(2, 3, 4, 4)  # one memory, two examples
    sent = [
        Example("a", Prompt("x", {"t": 1}), images[0], True),
        Example("b", Prompt("y"), images[1, :, :2], False),
    ]
    for one, other in zip(read_examples(Blob(example_blob(sent))), sent, strict=True):
        assert (one.name, one.prompt.text, dict(one.prompt.metadata), one.good) == (
            other.name, other.prompt.text, dict(other.prompt.metadata), other.good,
        )  # fmt: skip
        assert torch.equal(one.media, other.media)
    assert read_examples(Blob(example_blob([]))) == []


def test_plain_values() -> None:
    assert plain({1: {2}, "b": b"\x00", "c": torch.float32}) == {"1": [2], "b": "b'\\x00'", "c": "torch.float32"}


def test_float64_media_are_refused() -> None:
    with pytest.raises(Unfit, match=r"got torch.float64"):
        score_request(torch.zeros(1, 3, 1, 1).double(), [Prompt("x")])


HEADER = {"protocol": PROTOCOL, "prompts": [{"text": "x"}]}
MEDIA = {"media": torch.zeros(1, 3, 2, 2)}
TWO = HEADER | {"prompts": [{"text": "x"}] * 2}
PAIR = {"media": torch.zeros(2, 3, 2, 2)}


@pytest.mark.parametrize(
    ("header", "tensors", "error", "message"),
    [
        (HEADER | {"protocol": 99}, MEDIA, OtherProtocol, f"protocol version 99, this dgpo uses version {PROTOCOL}"),
        ({"prompts": []}, MEDIA, OtherProtocol, "protocol version None"),
        (HEADER | {"protocol": str(PROTOCOL)}, MEDIA, OtherProtocol, f"protocol version '{PROTOCOL}'"),
        (HEADER | {"prompts": [], "keys": []}, {"media": torch.zeros(0, 3, 2, 2)}, Unfit, "must have samples"),
        (HEADER | {"prompts": None}, MEDIA, Malformed, "prompts: must be a list"),
        (HEADER | {"prompts": [{"txt": "x"}]}, MEDIA, Malformed, r"prompts\.0\.text: is missing"),
        (HEADER | {"lonely": True}, MEDIA, Malformed, "lonely: unknown key; did you mean alone"),
        (HEADER | {"order": [0, 1, 2]}, MEDIA, Unfit, "not a permutation of 4 dimensions"),
        (HEADER | {"order": [0, 0, 1, 2]}, MEDIA, Unfit, "not a permutation of 4 dimensions"),
        (HEADER, {}, Unfit, "there must be one tensor, `media`, got none"),
        (HEADER, MEDIA | {"more": torch.zeros(1)}, Unfit, "got media, more"),
        (HEADER, {"media": torch.zeros(1, 3, 2, 2).double()}, Unfit, "got F64"),
        (HEADER, {"media": torch.zeros(1, 3, 2, 2).long()}, Unfit, "`media` must be one of F32, F16.*, got I64"),
        (HEADER, {"media": torch.zeros(1, 4, 2, 2)}, Unfit, r"got shape \[1, 4, 2, 2\]"),
        (HEADER, {"media": torch.zeros(3, 2, 2)}, Unfit, r"got shape \[3, 2, 2\]"),
        (HEADER, {"media": torch.zeros(1, 2, 4, 2, 2)}, Unfit, r"images \[B, 3, H, W\] or videos"),
        (HEADER, {"media": torch.zeros(2, 3, 2, 2)}, Unfit, "has 2 samples for 1 prompts"),
        (HEADER | {"keys": []}, MEDIA, Unfit, "there are 0 `keys` for 1 samples"),
        (HEADER | {"keys": [1]}, MEDIA, Malformed, r"keys\.0: must be a list"),
        (HEADER | {"keys": [[]]}, MEDIA, Malformed, r"keys\.0"),
        (HEADER | {"keys": [[1.5]]}, MEDIA, Malformed, r"keys\.0\.0"),
        (HEADER | {"keys": [[0] * 17]}, MEDIA, Malformed, r"keys\.0"),
        (TWO | {"keys": [["a"], ["a"]]}, PAIR, Unfit, "two samples have the same key"),
        (TWO | {"keys": [["a"], [1]], "prompts": [{"text": "x"}, {"text": "y"}]}, PAIR, Unfit, "must share one prompt"),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused(header: Any, tensors: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_score_request(Blob(pack(header, tensors)))


def framed(head: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(head)) + head + rest


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80", b"hello", b"\x80\x04\x95" + b"A" * 40, b"\xff" * 64, struct.pack("<Q", 2**63), framed(b"[]"),
        framed(b"{"), framed(b"[" * 100_000), framed(b"\xff\xfe"), framed(b"{}"), framed(b'{"__metadata__": {}}'),
        framed(b'{"__metadata__": {"dgpo": "["}}'), framed(b'{"__metadata__": {"dgpo": "[]"}}'),
        framed(b'{"__metadata__": {"dgpo": 1}}'), framed(b'{"__metadata__": {"dgpo": "{}"}, "media": 3}'),
        framed(b'{"__metadata__": {"dgpo": "{}"}, "media": {"dtype": "F32", "shape": "x"}}'),
        framed(b'{"__metadata__": {"dgpo": "{}"}, "media": {"shape": [1]}}'),
        framed(json.dumps({"__metadata__": {"dgpo": "[" * 50_000}}).encode()),
        safetensors.torch.save({"media": torch.zeros(1)}),
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Blob(data)


@pytest.mark.parametrize(
    "media",
    [
        {"dtype": "F32", "shape": [1, 3, 2, 2], "data_offsets": [0, 10**15]},
        {"dtype": "F32", "shape": [1, 3, 2, 2], "data_offsets": [-4, 48]},
        {"dtype": "F32", "shape": [1, 3, 2, 2]},
        {"dtype": "F32", "shape": [1, 3, 2, 2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1, 3, -2, -2], "data_offsets": [0, 48]},
    ],
)
def test_inconsistent_tensor_descriptions_are_refused(media: Any) -> None:
    head = {"__metadata__": {"dgpo": json.dumps(HEADER)}, "media": media}
    with pytest.raises((Malformed, Unfit)):
        read_score_request(Blob(framed(json.dumps(head).encode(), b"\x00" * 48)))


@given(st.data())
def test_a_damaged_message_raises_only_known_errors(data: st.DataObject) -> None:
    whole = bytearray(score_request(torch.arange(12.0).view(1, 3, 2, 2), [Prompt("x", {"a": [1]})]))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(len(whole) - 20, len(whole))) :]
    with contextlib.suppress(Malformed, Unfit):
        read_score_request(Blob(bytes(whole)))


def test_pickle_is_never_used() -> None:
    """Neither directly, nor through libraries that use it."""
    sources = list(Path(str(dgpo_remote.__file__)).parent.rglob("*.py"))
    assert len(sources) > 10
    forbidden = re.compile(r"(import|from) (pickle|marshal|shelve|multiprocessing)|(?<!safetensors\.)torch\.load\(")
    for path in sources:
        assert not forbidden.search(path.read_text()), path
