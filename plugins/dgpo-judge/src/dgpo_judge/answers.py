"""Read what a server answers: POST /v1/chat/completions, as OpenAI, vLLM and SGLang return it.

An answer that does not say what was asked has a `problem`; nothing is ever filled in for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dgpo_schemas.text import clean

__all__ = ["TOP", "Answer", "Malformed", "Position", "Top", "as_json", "hidden_values", "normal", "read_answer"]

Top = tuple[tuple[str, float], ...]
"""The most probable tokens at a position with their log-probabilities. A list and not a mapping: the same text may
stand for several tokens."""
TOP = 20
"""Log-probabilities per token that are asked for: the most that OpenAI and vLLM (`--max-logprobs`) return by default.
"""
EXCERPT = 80
"""Most characters of an answer in a reason."""
DEEPEST = 50
"""Most levels of JSON data of which texts are hidden."""
SURPLUS = 1e-3
"""How far the probabilities at a position may add up to more than 1, from rounding."""
LIKELY = 1e-3
"""Tokens with at least this probability must not be listed twice: then no sum of them is right."""


class Malformed(Exception):
    """The body is not a JSON object: not from the server that was meant, or cut. Another try may succeed."""


@dataclass(frozen=True, slots=True)
class Position:
    """A generated token, and the most probable tokens in its place."""

    token: str
    top: Top

    def mass(self, forms: Collection[str]) -> float:
        """Return the probability of all tokens whose normal form is one of `forms`."""
        return math.fsum(math.exp(logprob) for token, logprob in self.top if normal(token) in forms)

    def lists(self, form: str) -> bool:
        """Return whether a token with this normal form is listed."""
        return any(normal(token) == form for token, _ in self.top)

    def last(self) -> float:
        """Return the probability of the least probable token of the list: none that is not listed has more."""
        return math.exp(min(logprob for _, logprob in self.top))

    def unlisted(self) -> float:
        """Return the most probability that a token which is not listed can have."""
        return min(self.last(), max(0.0, 1 - math.fsum(math.exp(logprob) for _, logprob in self.top)))


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of a completion.

    text: the content; finish: why it ended (`stop`, `length`); tokens: empty without log-probabilities; problem: why
    it must not be used, None if it may; prompt_tokens, completion_tokens: what it cost, 0 where the server is silent.
    """

    text: str = ""
    finish: str = ""
    tokens: tuple[Position, ...] = ()
    problem: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def dump(self) -> list[Any]:
        """Return JSON values from which `load` makes an equal answer."""
        tokens = [[position.token, [list(entry) for entry in position.top]] for position in self.tokens]
        return [self.text, self.finish, tokens, self.problem, self.prompt_tokens, self.completion_tokens]

    @classmethod
    def load(cls, data: Sequence[Any]) -> Answer:
        """Make an answer from what `dump` returned."""
        text, finish, tokens, problem, prompt, completion = data
        positions = tuple(Position(token, tuple((t, p) for t, p in top)) for token, top in tokens)
        return cls(text, finish, positions, problem, prompt, completion)


def normal(token: str) -> str:
    """Return a token's normal form: without the marks of a leading space, in lower case."""
    return token.strip(" \t\r\n▁Ġ").lower()


def as_json(text: str | bytes) -> Any:
    """Parse strict JSON: no NaN, no infinity, no key twice. Raises ValueError, also for deep nesting."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def hidden_values(data: Any, hide: Callable[[str], str], depth: int = 0) -> Any:
    """Return JSON data with `hide` applied to all texts but keys."""
    if isinstance(data, str):
        return hide(data)
    if depth == DEEPEST and isinstance(data, dict | list):
        return "(nested too deeply)"
    if isinstance(data, dict):
        return {key: hidden_values(value, hide, depth + 1) for key, value in data.items()}
    return [hidden_values(value, hide, depth + 1) for value in data] if isinstance(data, list) else data


def read_answer(body: bytes, hide: Callable[[str], str] = str) -> Answer:
    """Read a response with status 200. Raises Malformed if the body is not a JSON object.

    hide: replaces the token (API key) in a text, which a server may repeat. It is applied to what is shown, and to a
    text that no score depends on; a text that is to be read must not contain the token.
    """
    try:
        data = as_json(body)
    except ValueError as error:
        raise Malformed(f"the response is not JSON ({clean(str(error), EXCERPT)}): {_excerpt(body, hide)}") from error
    if not isinstance(data, dict):
        raise Malformed(f"the response is not a JSON object: {_excerpt(body, hide)}")
    spent = _usage(data.get("usage"))
    try:
        text, finish, tokens = _choice(data)
        if (shown := hide(text)) != text and len(tokens) != 1:
            raise ValueError("the answer contains the token (API key), and must not be kept")
    except ValueError as error:
        problem = _problem(data, hide) or str(error)
        return Answer(problem=hide(problem), prompt_tokens=spent[0], completion_tokens=spent[1])
    text = shown  # with one token, the score is that of its probabilities
    return Answer(text, finish, tokens, None, *spent)


def _problem(data: Mapping[str, Any], hide: Callable[[str], str]) -> str | None:
    """Return why an answer is unusable, its texts hidden before they are cut; None if its parts are in order."""
    try:
        _choice(hidden_values(data, hide))
    except ValueError as error:
        return str(error)
    return None


def _choice(data: Mapping[str, Any]) -> tuple[str, str, tuple[Position, ...]]:
    """Return content, finish reason and tokens of the first choice. Raises ValueError that says why it is unusable."""
    if data.get("error"):
        raise ValueError(f"the server reports an error: '{clean(str(data['error']), EXCERPT)}'")
    choices = data.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError("the response has no `choices` with exactly one answer")
    choice = choices[0]
    message, finish = choice.get("message"), choice.get("finish_reason")
    if not isinstance(message, dict):
        raise ValueError("the answer has no `message`")
    if message.get("refusal"):
        raise ValueError(f"the judge refused: '{clean(str(message['refusal']), EXCERPT)}'")
    if finish not in ("stop", "length"):
        raise ValueError(f"the answer ended with finish_reason {clean(repr(finish), 40)}, not 'stop'")
    content = message.get("content")
    if not isinstance(content, str):
        thought = message.get("reasoning_content") or message.get("reasoning")
        hint = "; the text is in its reasoning: use a model that does not think, or request: "
        hint += "{chat_template_kwargs: {enable_thinking: false}}"
        raise ValueError(f"the content of the answer is {clean(repr(content), 40)}{hint if thought else ''}")
    return content, finish, _tokens(choice.get("logprobs"))


def _tokens(logprobs: Any) -> tuple[Position, ...]:
    """Read `logprobs`; empty where there are none."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list):
        return ()
    return tuple(_position(entry) for entry in content)


def _position(entry: Any) -> Position:
    token = entry.get("token") if isinstance(entry, dict) else None
    top = entry.get("top_logprobs") if isinstance(entry, dict) else None
    if not isinstance(token, str) or not isinstance(top, list) or not top:
        raise ValueError("the log-probabilities lack the most probable tokens (`top_logprobs`)")
    read = tuple(_alternative(one) for one in top)
    probabilities = [math.exp(logprob) for _, logprob in read]
    if (total := math.fsum(probabilities)) > 1 + SURPLUS:
        raise ValueError(f"the probabilities of a token add up to {total:.3f}")
    likely = [one for one, p in zip(read, probabilities, strict=True) if p >= LIKELY and normal(one[0])]
    if len(set(likely)) < len(likely):
        twice = next(text for text, logprob in likely if likely.count((text, logprob)) > 1)
        raise ValueError(f"the token {clean(repr(twice), 40)} is listed twice with the same probability")
    return Position(token, read)


def _alternative(one: Any) -> tuple[str, float]:
    text, logprob = (one.get("token"), one.get("logprob")) if isinstance(one, dict) else (None, None)
    if not isinstance(text, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise ValueError("the log-probabilities have an entry without a token or a number")
    if not math.isfinite(value := _float(logprob)) or value > SURPLUS:
        raise ValueError(f"the log-probability {logprob} of {clean(repr(text), 40)} is not at most 0")
    return text, value


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _usage(usage: Any) -> tuple[int, int]:
    """Return the tokens of prompt and answer, 0 where they are not plausible numbers."""
    found = usage if isinstance(usage, dict) else {}
    counts = (found.get("prompt_tokens"), found.get("completion_tokens"))
    first, second = (n if type(n) is int and 0 <= n < 2**40 else 0 for n in counts)
    return first, second


def _excerpt(body: bytes, hide: Callable[[str], str]) -> str:
    text = " ".join(hide(body[:2000].decode("utf-8", "replace"))[:200].split())
    return f"'{clean(text, EXCERPT)}'" if text else "nothing"
