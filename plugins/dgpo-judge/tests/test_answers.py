"""Answers as the servers write them, and as they should not be. The files in `recorded` were written by hand in the
form that the documentation of vLLM, SGLang and OpenAI's API describes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgpo_judge.answers import Answer, Malformed, Position, normal, read_answer
from dgpo_judge.forms import Unscored, usable, vqascore

RECORDED = Path(__file__).parent / "recorded"


def recorded(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    return data


@pytest.mark.parametrize(
    ("name", "yes", "no", "finish", "spent"),
    [
        ("vllm", 0.9 + 0.02 + 0.01, 0.05, "length", (289, 1)),
        ("sglang", 0.1, 0.8 + 0.05, "length", (301, 1)),
        ("openai", math.exp(-1.9816e-06), 0.0, "stop", (275, 1)),
    ],
)
def test_recorded_answers(name: str, yes: float, no: float, finish: str, spent: tuple[int, int]) -> None:
    answer = read_answer((RECORDED / f"{name}.json").read_bytes())
    assert answer.problem is None
    assert (answer.finish, answer.prompt_tokens, answer.completion_tokens) == (finish, *spent)
    assert vqascore(answer, raw=False).value == pytest.approx(yes / (yes + no), abs=1e-12)
    assert vqascore(answer, raw=True).value == pytest.approx(yes, abs=1e-12)
    assert Answer.load(json.loads(json.dumps(answer.dump()))) == answer


@pytest.mark.parametrize("token", ["Yes", " yes", "YES\n", "\u2581Yes", "\u0120yes"])
def test_forms_of_a_token(token: str) -> None:
    assert normal(token) == "yes"
    assert Position("x", ((token, math.log(0.25)), ("yes", math.log(0.5)), ("Yesterday", -1.0))).mass({"yes"}) == 0.75


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *places, last = path.split(".")
        inner: Any = data
        for place in places:
            inner = inner[int(place) if place.isdecimal() else place]
        inner[int(last) if last.isdecimal() else last] = value

    return apply


TOP = "choices.0.logprobs.content.0.top_logprobs"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("choices", [], "no `choices` with exactly one answer"),
        ("choices", None, "no `choices`"),
        ("choices.0", "Yes", "no `choices`"),
        ("choices.0.message", None, "has no `message`"),
        ("choices.0.message.content", None, "the content of the answer is None"),
        ("choices.0.message.content", [{"type": "text", "text": "Yes"}], "the content of the answer is ["),
        ("choices.0.message.refusal", "I cannot help with that", "the judge refused: 'I cannot help with that'"),
        ("choices.0.finish_reason", "content_filter", "finish_reason 'content_filter'"),
        ("choices.0.finish_reason", None, "finish_reason None"),
        ("choices.0.finish_reason", ["stop"], "finish_reason ['stop']"),
        ("error", {"message": "out of memory"}, "reports an error: '{'message': 'out of memory'}'"),
        (f"{TOP}.0.logprob", "0", "an entry without a token or a number"),
        (f"{TOP}.0.logprob", True, "an entry without a token or a number"),
        (f"{TOP}.0.logprob", None, "an entry without a token or a number"),
        (f"{TOP}.0.logprob", 0.9, "is not at most 0"),
        (f"{TOP}.0.logprob", 10**400, "is not at most 0"),
        (f"{TOP}.0.token", 9, "an entry without a token"),
        (f"{TOP}.0", None, "an entry without a token"),
        (f"{TOP}.1.logprob", -0.1, "add up to 1.8"),
        (f"{TOP}.3", {"token": " Yes", "logprob": -3.912023005428146}, "' Yes' is listed twice with the same"),
        (TOP, [], "lack the most probable tokens"),
        (TOP, None, "lack the most probable tokens"),
        ("choices.0.logprobs.content.0", "Yes", "lack the most probable tokens"),
        ("choices.0.logprobs.content.0.token", None, "lack the most probable tokens"),
        ("choices.0.logprobs.content", [], "returned no log-probabilities"),
        ("choices.0.logprobs.content", "x", "returned no log-probabilities"),
        ("choices.0.logprobs", None, "returned no log-probabilities"),
        ("choices.0.logprobs", [1], "returned no log-probabilities"),
    ],
)
def test_what_is_no_answer_is_unscored_with_the_reason(path: str, value: Any, reason: str) -> None:
    data = recorded("vllm")
    change(path, value)(data)
    with pytest.raises(Unscored) as caught:
        vqascore(usable(read_answer(json.dumps(data).encode())), raw=False)
    assert reason in str(caught.value)


def test_thoughts_in_place_of_an_answer() -> None:
    data = recorded("sglang")
    data["choices"][0]["message"] |= {"content": None, "reasoning_content": "Let me look at the picture"}
    assert "enable_thinking: false" in (read_answer(json.dumps(data).encode()).problem or "")


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": -1, "completion_tokens": "9"}, {"prompt_tokens": 2**50}])
def test_odd_usage_costs_nothing(usage: Any) -> None:
    data = recorded("openai") | {"usage": usage}
    answer = read_answer(json.dumps(data).encode())
    assert (answer.problem, answer.prompt_tokens, answer.completion_tokens) == (None, 0, 0)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"<html>", b'{"a": 1', b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 10**5, b"\xff"]
)
def test_what_is_no_json_object_may_be_tried_again(body: bytes) -> None:
    with pytest.raises(Malformed, match="the response is not"):
        read_answer(body)
