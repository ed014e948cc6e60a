"""Prompts with condition media: rewards receive the same in the run's process, in a worker and behind a service."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.data.checks import check_prompts
from dgpo_core.errors import UserError
from dgpo_core.media.conditions import condition_medium
from dgpo_core.types import ConditionMedium, Example, Prompt
from dgpo_remote.messages.blobs import Blob, Malformed, Unfit, pack
from dgpo_remote.messages.prompts import FILE
from dgpo_remote.messages.scores import example_blob, read_examples, read_score_request, score_request
from dgpo_schemas.service import PROTOCOL, SAFETENSORS

Make = Callable[..., RewardModel]
Serve = Callable[..., Any]


def encoded(color: int, size: tuple[int, int] = (8, 8), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (color, 2 * color, 3 * color)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def edits(tmp_path: Path) -> tuple[Tensor, list[Prompt]]:
    """Four samples of two images, one of which lies in a file."""
    (tmp_path / "a.png").write_bytes(encoded(10))
    one, two = condition_medium(tmp_path / "a.png"), condition_medium(encoded(60))
    first = Prompt("a", {"x": 1}, negative="", media=(one,), size=(8, 8), source="edits", fps=24.0)
    second = Prompt("b", media=(two, one), size=(8, 8), negative="n")
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), [first, first, second, second]


def test_prompts_arrive_and_each_file_is_sent_once(edits: tuple[Tensor, list[Prompt]]) -> None:
    media, prompts = edits
    blob = Blob(score_request(media, prompts))
    assert sum(name.startswith(FILE) for name in blob.shapes) == 2
    arrived = read_score_request(blob).prompts
    assert arrived == [replace(p, metadata=dict(p.metadata)) for p in prompts]
    assert [p.fps for p in arrived] == [24.0, 24.0, None, None]
    assert torch.equal(arrived[2].media[1].read(), prompts[0].media[0].read())
    assert torch.equal(read_score_request(blob).media, media)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_examples_arrive_with_their_media(edits: tuple[Tensor, list[Prompt]], order: tuple[int, int]) -> None:
    media, prompts = edits
    sent = [Example(str(i), prompts[2 * i], media[i], True) for i in order]
    arrived = read_examples(Blob(example_blob(sent)))
    assert [e.prompt for e in arrived] == [replace(e.prompt, metadata=dict(e.prompt.metadata)) for e in sent]
    assert all(
        torch.equal(a.prompt.media[0].read(), s.prompt.media[0].read()) for a, s in zip(arrived, sent, strict=True)
    )


def test_a_file_that_has_changed_is_not_sent(edits: tuple[Tensor, list[Prompt]]) -> None:
    media, prompts = edits
    Path(prompts[0].media[0].path).write_bytes(encoded(11))
    with pytest.raises(UserError, match=r"a\.png: has changed since"):
        score_request(media, prompts)


DIGEST = condition_medium(encoded(10)).digest
BYTES = torch.frombuffer(bytearray(encoded(10)), dtype=torch.int8)
NAME = f"{FILE}{DIGEST}"
MEDIUM = {"kind": "image", "digest": DIGEST}


@pytest.mark.parametrize(
    ("medium", "tensors", "error", "message"),
    [
        (MEDIUM, {}, Unfit, "are missing"),
        (MEDIUM, {NAME: BYTES[1:].clone()}, Unfit, "do not match its digest"),
        (MEDIUM, {NAME: BYTES.view(torch.uint8)}, Unfit, r"must be I8 \[n\], got U8 \[\d+\]"),
        (MEDIUM, {NAME: BYTES[None]}, Unfit, r"must be I8 \[n\], got I8 \[1, \d+\]"),
        (MEDIUM, {NAME: BYTES, f"{FILE}more": BYTES}, Unfit, "there must be one tensor besides the prompts' files"),
        (MEDIUM | {"kind": "sound"}, {NAME: BYTES}, Malformed, r"prompts\.0\.media\.0\.kind: "),
        (MEDIUM | {"digest": DIGEST[:-1]}, {NAME: BYTES}, Malformed, r"prompts\.0\.media\.0\.digest: "),
        (MEDIUM | {"digest": DIGEST + "\n"}, {NAME: BYTES}, Malformed, r"prompts\.0\.media\.0\.digest: "),
        (MEDIUM | {"path": "/etc/passwd"}, {NAME: BYTES}, Malformed, r"prompts\.0\.media\.0\.path: unknown key"),
    ],
)
def test_inconsistent_media_are_refused(medium: Any, tensors: Any, error: type[Exception], message: str) -> None:
    header = {"protocol": PROTOCOL, "prompts": [{"text": "x", "media": [medium]}]}
    with pytest.raises(error, match=message):
        read_score_request(Blob(pack(header, {"media": torch.zeros(1, 3, 8, 8), **tensors})))


@pytest.mark.parametrize(
    "more", [{"size": [4]}, {"size": [0, 4]}, {"size": "8"}, {"fps": 0}, {"negative": 3}, {"source": 1}]
)
def test_invalid_fields_of_a_prompt_are_refused(more: dict[str, Any]) -> None:
    header = {"protocol": PROTOCOL, "prompts": [{"text": "x", **more}]}
    with pytest.raises(Malformed, match=rf"prompts\.0\.{next(iter(more))}"):
        read_score_request(Blob(pack(header, {"media": torch.zeros(1, 3, 8, 8)})))


@pytest.mark.parametrize("where", ["service", pytest.param("worker", marks=pytest.mark.slow)])
def test_scores_are_bit_identical_with_each_transport(
    make: Make, serve_all_along: Serve, edits: tuple[Tensor, list[Prompt]], where: str
) -> None:
    """Check requests contain only digests; score requests contain the bytes."""
    media, prompts = edits
    section = {"urls": [serve_all_along("edit").url]} if where == "service" else {}
    here, there = make("edit"), make("edit", **{where: section})
    for reward in (here, there):
        reward.check_prompts(prompts)
        with pytest.raises(UserError, match=r"^the prompt has no media$"):
            reward.check_prompts([prompts[0], Prompt("x")])
    expected, scores = here.score(media, prompts), there.score(media, prompts)
    reported = {"negative": "", "size": [8, 8], "source": "edits", "fps": 24.0, "media": ["image"]}
    assert json.loads(json.dumps(expected.diagnostics[0])) == reported == scores.diagnostics[0]
    assert float(expected.values[0]) == pytest.approx(1 - float((media[0] - prompts[0].media[0].read()).abs().mean()))
    assert scores.values.tolist() == expected.values.tolist()
    assert [e.prompt.media for e in there.examples()] == [e.prompt.media for e in here.examples()]


@pytest.fixture(scope="module")
def narrow(serve_all_along: Serve) -> Any:
    return serve_all_along("edit", limits={"max_side": 64})


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"no image", "image", 400, "not a readable image or video"),
        (encoded(10)[:-30], "image", 400, "cannot be read"),
        (encoded(10, (70, 8)), "image", 413, "a side is longer than 64 (limits.max_side)"),
        (encoded(10), "video", 422, "expected a video, got an image"),
    ],
)
def test_a_service_applies_its_limits_to_condition_media(
    narrow: Any, content: bytes, kind: Any, status: int, message: str
) -> None:
    medium = ConditionMedium(kind, hashlib.sha256(content).hexdigest(), content=content)
    good = condition_medium(encoded(20))
    body = score_request(torch.zeros(2, 3, 8, 8), [Prompt("x", media=(good,)), Prompt("x", media=(medium,))])
    answer = httpx.post(f"{narrow.url}/v1/score", content=body, headers={"Content-Type": SAFETENSORS})
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert f"the prompts' medium sha256:{medium.digest[:12]}: " in answer.json()["error"]["message"]
    assert narrow.service.budget.used == 0


def test_media_beyond_a_service_s_limits_are_refused_before_the_run(narrow: Any, make: Any) -> None:
    there = make("edit", service={"urls": [narrow.url]})
    fine, wide = condition_medium(encoded(20)), condition_medium(encoded(10, (70, 8)))
    prompts = [Prompt("x", origin="p:1", media=(fine,)), Prompt("y", origin="p:2", media=(fine, wide))]
    there.check_prompts(prompts[:1])
    reported = r"^p:2: media: the image sha256:\w+…: has a side of 70 pixels; .*limits.max_side"
    with pytest.raises(UserError, match=reported) as caught:
        check_prompts(there, prompts)
    assert "rewards.0.service accept up to 64 pixels" in str(caught.value)


def test_one_file_cannot_be_of_two_kinds(narrow: Any) -> None:
    medium = condition_medium(encoded(20))
    prompt = Prompt("x", media=(replace(medium, kind="video"), medium))
    body = score_request(torch.zeros(1, 3, 8, 8), [prompt])
    answer = httpx.post(f"{narrow.url}/v1/score", content=body, headers={"Content-Type": SAFETENSORS})
    assert answer.status_code == 422
    assert "expected a video, got an image" in answer.json()["error"]["message"]


def test_media_count_towards_a_service_s_memory_limit(serve: Serve) -> None:
    served = serve("edit", memory_mib=64, limits={"max_body_mib": 16})
    body = score_request(torch.zeros(1, 3, 8, 8), [Prompt("x", media=(condition_medium(encoded(1, (2048, 2048))),))])
    answer = httpx.post(f"{served.url}/v1/score", content=body, headers={"Content-Type": SAFETENSORS})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (413, "size")
    assert "(memory_mib)" in answer.json()["error"]["message"]
