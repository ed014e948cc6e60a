"""The judge against a server that answers by a known function of the picture: the values are exact."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_core.errors import RewardUnusable, UserError
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.types import Prompt
from dgpo_judge.demo_server import answer_to, send

from .conftest import Playing, first, good, hang, pictures, red, status

Judge = Callable[..., Any]
Play = Callable[..., Playing]
QUESTIONS = {"questions": [["Is it red?", "Yes"], {"question": "Is it blue?", "answer": "no"}]}


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f'a {{red}} "cat" number {i} \U0001f408', QUESTIONS) for i in range(count)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda m: m),
        ({"raw": True}, lambda m: m),
        ({"form": "rating"}, lambda m: 1 + 4 * m),
        ({"form": "rating", "scale": "0-9"}, lambda m: 9 * m),
        ({"form": "rubric"}, lambda m: m),
        ({"form": "rubric", "aspects": [{"name": "a", "low": -2, "high": 7}, {"name": "b", "weight": 3}]}, lambda m: m),
        ({"form": "soft-tifa"}, lambda m: (m * (1 - m)).sqrt()),
        ({"form": "soft-tifa", "mean": "arithmetic"}, lambda m: 0 * m + 0.5),
    ],
)
def test_values_are_exact(play: Play, judge: Judge, options: dict[str, Any], expected: Any) -> None:
    reward, media = judge(play(), **options), pictures(7)
    scores = reward.score(media, prompts(7))
    assert not scores.missing.any()
    assert torch.allclose(scores.values.double(), expected(red(media)), rtol=0, atol=3e-7 * reward.range[1])


def test_a_rubric_in_lines(play: Play, judge: Judge) -> None:
    reward, media = judge(play(), form="rubric", answers="lines"), pictures(3)
    assert torch.allclose(reward.score(media, prompts(3)).values.double(), red(media), rtol=0, atol=1e-6)


def test_what_is_sent(play: Play, judge: Judge) -> None:
    """Pictures as PNG without any loss, first; the text last; every setting that a server would else fill in."""
    server = play()
    reward = judge(server, seed=7, request={"chat_template_kwargs": {"enable_thinking": False}})
    media = pictures(1)
    reward.score(media, [Prompt('say "{prompt}"')])
    (request,) = server.requests
    picture, text = request["messages"][0]["content"]
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    sent = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(sent, (media[0] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8))
    assert text == {
        "type": "text",
        "text": 'Does this image show "say "{prompt}""? Answer the question with Yes or No.',
    }
    rest = {key: value for key, value in request.items() if key != "messages"}
    assert rest == {
        "model": "demo-judge", "max_tokens": 1, "temperature": 0, "top_p": 1, "seed": 7, "logprobs": True,
        "top_logprobs": 20, "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "sent"),
    [((3, 1, 1), (32, 32)), ((3, 20, 70), (40, 140)), ((3, 64, 48), (64, 48)), ((3, 80, 40), (45, 22))],
)
def test_sizes_that_models_accept(play: Play, judge: Judge, size: tuple[int, ...], sent: tuple[int, int]) -> None:
    """Below a cell enlarged by repeating pixels, which keeps every mean; beyond `max_pixels` downscaled."""
    server = play()
    reward = judge(server, max_pixels=1024 if size == (3, 80, 40) else 2**20)
    media = pictures(1, size=size)
    value = reward.score(media, prompts(1)).values.double()
    url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        assert image.size == sent[::-1]
    assert torch.allclose(value, red(media), atol=1e-6 if size != (3, 80, 40) else 0.02)


def test_videos_are_sent_as_frames(play: Play, judge: Judge) -> None:
    server = play()
    reward, media = judge(server, frames=3), pictures(2, size=(9, 3, 32, 32))
    scores = reward.score(media, prompts(2))
    frames = media[:, [0, 4, 8]]
    expected = torch.stack([red(video).mean() for video in frames])
    assert torch.allclose(scores.values.double(), expected, rtol=0, atol=3e-7)
    assert "Does this video show" in server.requests[0]["messages"][0]["content"][-1]["text"]
    assert len(reward.score(media[:, :1], prompts(2)).values) == 2


def test_any_split_into_batches_gives_the_same_bits(play: Play, judge: Judge) -> None:
    server, media = play(), pictures(8)
    whole = judge(server).score(media, prompts(8)).values
    for size in (1, 3, 5):
        reward = judge(server, concurrency=size)
        parts = [reward.score(media[i : i + size], prompts(8)[i : i + size]).values for i in range(0, 8, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_values_that_are_no_pixels_are_missing_alone(play: Play, judge: Judge) -> None:
    media = pictures(4)
    media[1, 0, 3, 3], media[2, 0, 0, 0] = torch.nan, 1.5
    scores = judge(play()).score(media, prompts(4))
    assert scores.missing.tolist() == [False, True, True, False]
    assert scores.diagnostics[2]["reason"] == "the media have values that are not in [0, 1]"


def test_unlikely_answers_are_missing(play: Play, judge: Judge) -> None:
    """Where Yes and No are improbable together, the judge said something else, such as its thoughts."""

    def thinks(handler: Any, request: Any) -> None:
        answer = answer_to(request)
        position = answer["choices"][0]["logprobs"]["content"][0]
        position["top_logprobs"] = [{"token": "<think>", "logprob": math.log(0.6)}] + [
            {**one, "logprob": one["logprob"] + math.log(0.4)} for one in position["top_logprobs"]
        ]
        send(handler, 200, json.dumps(answer).encode())

    for options in ({}, {"form": "soft-tifa"}):
        scores = judge(play(thinks), **options).score(pictures(2), prompts(2))
        assert scores.missing.all()
        assert "has a probability of only 0.4" in scores.diagnostics[0]["reason"]


@pytest.mark.parametrize("code", [400, 401, 403, 404, 413, 422, 302])
def test_refusals_of_the_whole_first_batch_end_the_command(play: Play, judge: Judge, code: int) -> None:
    server = play(status(code))
    reward = judge(server)
    with pytest.raises(RewardUnusable, match=rf"the judge refuses every question: http.*status {code}"):
        checked_score(Reward("judge", 1.0, reward), pictures(2), prompts(2))
    assert len(server.requests) == 2, "refused requests are not sent again"


def test_refusals_after_an_answer_are_missing_samples(play: Play, judge: Judge) -> None:
    reward = judge(play(first(good, then=status(422))), concurrency=1)
    scores = checked_score(Reward("judge", 1.0, reward), pictures(2), prompts(2))
    assert scores.missing.tolist() == [False, True]
    assert checked_score(Reward("judge", 1.0, reward), pictures(2), prompts(2)).missing.all()


def test_a_first_batch_that_failed_otherwise_goes_on(play: Play, judge: Judge) -> None:
    reward = judge(play(first(status(400), then=hang(0))), retries=0, concurrency=1)
    assert reward.score(pictures(2), prompts(2)).missing.all()


def test_the_token_is_sent_and_never_shown(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "sk-very-secret"
    monkeypatch.setenv("JUDGE_TOKEN", secret)
    said = f'{{"error": "bad key Bearer {secret}"}}'.encode()
    server = play(first(good, status(200, said), then=status(400, said)))
    with caplog.at_level("DEBUG"):
        reward = judge(server, token_variable="JUDGE_TOKEN", concurrency=1)
        scores = reward.score(pictures(3), prompts(3))
    assert server.headers[0]["Authorization"] == f"Bearer {secret}"
    assert scores.missing.tolist() == [False, True, True]
    assert all("(token)" in entry["reason"] for entry in scores.diagnostics[1:])
    assert secret not in repr(scores.diagnostics) + repr(reward.options) + caplog.text


@pytest.mark.parametrize("secret", ["token", "message", "1", "s", "Yes"])
@pytest.mark.parametrize("options", [{}, {"form": "rating"}])
def test_a_token_that_is_a_word_changes_no_answer(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, secret: str, options: dict[str, Any]
) -> None:
    """It is replaced where people would see it, and not where numbers are read."""
    monkeypatch.setenv("JUDGE_TOKEN", secret)
    server, media = play(), pictures(3)
    found = judge(server, token_variable="JUDGE_TOKEN", **options).score(media, prompts(3))
    assert torch.equal(found.values, judge(server, **options).score(media, prompts(3)).values)
    assert not found.missing.any()


def _escapings(secret: str) -> list[str]:
    """The token as JSON texts may write it."""
    return [
        json.dumps(secret)[1:-1], secret.replace("/", "\\/"), "".join(f"\\u{ord(one):04X}" for one in secret),
        json.dumps(json.dumps(secret.replace("/", "\\/")))[1:-1],
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize(
    "said",
    [
        '{"error": {"message": "bad key SECRET"}}',
        '{"choices": [{"message": {"content": "SECRET"}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "a", "refusal": "FILLERSECRET"}, "finish_reason": "stop"}]}',
        '{"choices": [{"message": {"content": "a"}, "finish_reason": "SECRET"}]}',
        '{"choices": [{"message": {"content": ["SECRET"]}, "finish_reason": "stop"}]}',
        "<html>FILLERSECRET",
    ],
)
def test_a_token_is_hidden_however_it_is_escaped(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, number: int
) -> None:
    """Also where an excerpt is cut within it."""
    secret = 'sk/ab"c\\d-0123456789'
    monkeypatch.setenv("JUDGE_TOKEN", secret)
    body = said.replace("SECRET", _escapings(secret)[number]).replace("FILLER", "x" * 70).encode()
    for code in (200, 400):
        reward = judge(play(first(good, then=status(code, body))), token_variable="JUDGE_TOKEN", form="reading",
                       retries=0, concurrency=1)  # fmt: skip
        reward.keep_in(tmp_path / str(code))
        asked = [Prompt("a sign", {"target": "open"})] * 2
        scores = reward.score(pictures(2), asked)
        assert scores.missing[1]
        kept = "".join(path.read_text() for path in (tmp_path / str(code)).iterdir())
        for shown in (scores.diagnostics[1]["reason"], kept):
            assert not re.search(r"sk\\*/|ab\\*\"|u00[67]3", shown, re.IGNORECASE), shown


def test_what_a_server_says_of_its_model_is_kept_without_the_token(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "demo")
    models = {"data": [{"id": "demo-judge", "owned_by": "the demo", "more": [{"id": "a demo"}]}]}
    body = json.dumps(models).encode()
    monkeypatch.setattr("dgpo_judge.demo_server._Handler.do_GET", lambda handler: send(handler, 200, body))
    reward = judge(play(), token_variable="JUDGE_TOKEN")
    reward.keep_in(tmp_path)
    about = json.loads((tmp_path / "judge.json").read_text())
    assert about["model"] == "demo-judge", "the name is sent"
    assert about["served"] == {"id": "demo-judge", "owned_by": "the (token)", "more": [{"id": "a (token)"}]}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [(None, "JUDGE_TOKEN is not set; export it"), ("a b", "is not a token: it contains a space")],
)
def test_tokens_that_cannot_be_sent(
    play: Play, judge: Judge, monkeypatch: pytest.MonkeyPatch, value: str | None, complaint: str
) -> None:
    if value is not None:
        monkeypatch.setenv("JUDGE_TOKEN", value)
    with pytest.raises(UserError, match=complaint):
        judge(play(), token_variable="JUDGE_TOKEN")


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({}, "has no questions, which `form: soft-tifa` asks"),
        ({"questions": [["How many?", "three cats"]]}, "entry 1: the expected answer 'three cats' must be one word"),
        ({"vqa_list": [["How many?"]]}, "`vqa_list`, entry 1: must be a pair"),
        ({"questions": "none"}, "must be a list of at most 100 pairs"),
        ({"questions": [["How many?", True]]}, "must be texts"),
    ],
)
def test_prompts_without_usable_questions_are_refused(
    play: Play, judge: Judge, metadata: dict[str, Any], complaint: str
) -> None:
    reward = judge(play(), form="soft-tifa")
    reward.check_prompts([Prompt("fine", {"vqa_list": [["How many cats?", 3]]})])
    with pytest.raises(UserError, match=re.escape(complaint)):
        reward.check_prompts([Prompt("a cat", metadata, origin="prompts.jsonl:3")])


def test_costs(play: Play, judge: Judge) -> None:
    """Counted once; seconds only where there were answers."""
    reward = judge(play(first(status(500), status(500))), concurrency=1)
    reward.score(pictures(4), prompts(4))
    costs = reward.costs()
    assert {name: costs[name] for name in ("requests", "retries", "failed", "prompt_tokens", "completion_tokens")} == {
        "requests": 6, "retries": 2, "failed": 0, "prompt_tokens": 400, "completion_tokens": 4,
    }  # fmt: skip
    assert 0 < costs["p50_seconds"] <= costs["p95_seconds"]
    assert set(reward.costs().values()) == {0}
