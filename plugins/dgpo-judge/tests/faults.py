"""Answers that are faulty by construction: of a good one, exactly one thing is spoiled, and every spoiled answer says
which. Nothing here knows how answers are read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from dgpo_judge.demo_server import answer_to

__all__ = ["KINDS", "faulty"]

Spoil = Callable[[dict[str, Any], random.Random], Any]
JUNK: list[Any] = [None, True, False, -1, 7, 3.5, "", "5", "Yes", [], {}, [5], {"score": 5}]


def _choice(data: dict[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = data["choices"][0]
    return choice


def _top(data: dict[str, Any]) -> list[dict[str, Any]] | None:
    logprobs = _choice(data)["logprobs"]
    return logprobs["content"][0]["top_logprobs"] if logprobs else None


def no_choices(data: dict[str, Any], rng: random.Random) -> None:
    data["choices"] = rng.choice([*JUNK, data["choices"] * 2])


def no_message(data: dict[str, Any], rng: random.Random) -> None:
    _choice(data)["message"] = rng.choice(JUNK)


def odd_content(data: dict[str, Any], rng: random.Random) -> None:
    """Anything but a text."""
    _choice(data)["message"]["content"] = rng.choice([one for one in JUNK if not isinstance(one, str)])


def thoughts(data: dict[str, Any], rng: random.Random) -> None:
    _choice(data)["message"] |= {"content": None, rng.choice(["reasoning", "reasoning_content"]): "It is a 5. Yes."}


def refusal(data: dict[str, Any], rng: random.Random) -> None:
    _choice(data)["message"]["refusal"] = rng.choice(["I cannot help with that.", "5", "Yes"])


def odd_finish(data: dict[str, Any], rng: random.Random) -> None:
    _choice(data)["finish_reason"] = rng.choice(["content_filter", "tool_calls", "abort", "error", None, 1, [], {}])


def an_error(data: dict[str, Any], rng: random.Random) -> None:
    data["error"] = rng.choice(["boom", {"message": "boom", "code": 500}, ["boom"], 1])


def no_probabilities(data: dict[str, Any], rng: random.Random) -> None:
    """Of a form with log-probabilities; of others the text is lost."""
    if _top(data) is None:
        return text_of_another_kind(data, rng)
    _choice(data)["logprobs"] = rng.choice([one for one in JUNK if not isinstance(one, str)] + [{"content": None}])


def text_of_another_kind(data: dict[str, Any], rng: random.Random) -> None:
    """Not the JSON, or the token, that was asked for."""
    texts = ["", "5", "Yes", "<think>Well, I see a 5</think>", "I rate it 5 out of 5.", '{"ranking": []}', "[5, 5, 5]",
             '{"alignment": 5', "null", "```json\n{}\n```", "NaN", '{"alignment": 5, "alignment": 4}']  # fmt: skip
    text = rng.choice(texts)
    _choice(data)["message"]["content"] = text
    if _top(data) is not None:
        entry = {"token": "<think>", "logprob": -1e-4, "bytes": None}
        _choice(data)["logprobs"]["content"][0] = {**entry, "top_logprobs": [entry]}


def cut_text(data: dict[str, Any], rng: random.Random) -> None:
    """The end of the text is missing, and the server says so. Of one token, all is missing."""
    message = _choice(data)["message"]
    if _top(data) is not None:
        _choice(data)["logprobs"]["content"] = []
    message["content"] = message["content"][: rng.randrange(len(message["content"]))]
    _choice(data)["finish_reason"] = "length"


def odd_probability(data: dict[str, Any], rng: random.Random) -> None:
    """One entry is no token with a log-probability."""
    top = _top(data)
    if top is None:
        return odd_number(data, rng)
    entry = rng.choice(top)
    what = rng.randrange(4)
    if what == 0:
        entry["logprob"] = rng.choice([one for one in JUNK if type(one) not in (int, float)] + [0.7, 5, 1e300, 10**400])
    elif what == 1:
        entry["token"] = rng.choice([one for one in JUNK if not isinstance(one, str)])
    elif what == 2:
        del entry[rng.choice(["token", "logprob"])]
    else:
        top[rng.randrange(len(top))] = rng.choice([one for one in JUNK if not isinstance(one, dict)] + [{}])


def doubled(data: dict[str, Any], rng: random.Random) -> None:
    """The most probable token stands there twice; of a text, the whole text does."""
    top = _top(data)
    if top is None:
        _choice(data)["message"]["content"] *= 2
    else:
        top.insert(rng.randrange(len(top) + 1), dict(max(top, key=lambda one: one["logprob"])))


def odd_number(data: dict[str, Any], rng: random.Random) -> None:
    """A value out of range, of another type, absent, or too many; of tokens, other words are probable."""
    if _top(data) is not None:
        return text_of_another_kind(data, rng)
    found = json.loads(_choice(data)["message"]["content"])
    name = rng.choice(list(found))
    if isinstance(found[name], list):
        spoiled = rng.choice([found[name][1:], found[name] * 2, found[name][:1] * len(found[name]), "A", None, 5, {}])
        found = rng.choice([{name: spoiled}, {**found, "more": 1}, {}])
    else:
        what = rng.randrange(3)
        if what == 0:
            found[name] = rng.choice([one for one in JUNK if type(one) not in (int, float)] + [-1, 0.5, 5.5, 10**400])
        elif what == 1:
            del found[name]
        else:
            found["more"] = 5
    _choice(data)["message"]["content"] = json.dumps(found)


KINDS: tuple[Spoil, ...] = (
    no_choices, no_message, odd_content, thoughts, refusal, odd_finish, an_error, no_probabilities,
    text_of_another_kind, cut_text, odd_probability, doubled, odd_number,
)  # fmt: skip

BODIES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    lambda body, rng: body[: rng.randrange(len(body))],
    lambda body, rng: b"<html>" + body,
    lambda body, rng: body + body,
    lambda body, rng: body.replace(b'"logprob": ', b'"logprob": NaN, "was": ').replace(
        b'"content": ', b'"content" ', 1
    ),
    lambda body, rng: rng.randbytes(rng.randrange(200)),
    lambda body, rng: b"[" + body + b"]",
    lambda body, rng: b'{"choices": [], ' + body[1:],
    lambda body, rng: b"data: " + body + b"\n\ndata: [DONE]\n\n",
    lambda body, rng: b"[" * rng.randrange(1, 5000),
)
"""Bodies that are no JSON object, which a client may ask for once more."""


def faulty(request: Mapping[str, Any], rng: random.Random) -> tuple[str, bytes]:
    """Return a kind of fault and a body with status 200 that has it."""
    data = answer_to(request)
    if rng.random() < 0.3:
        number = rng.randrange(len(BODIES))
        return f"body {number}", BODIES[number](json.dumps(data).encode(), rng)
    spoil = rng.choice(KINDS)
    spoil(data, rng)
    return spoil.__name__, json.dumps(data).encode()
