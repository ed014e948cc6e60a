"""From answers to scores. Whatever an answer does not say is missing: `Unscored`, with the reason.

P(s) is the probability of the tokens at a position whose normal form (`answers.normal`) is s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dgpo_judge.answers import TOP, Answer, Position, as_json, normal
from dgpo_judge.client import Failure
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    from dgpo_judge.options import Aspect

__all__ = [
    "ANSWERED",
    "Unscored",
    "Verdict",
    "expected_probability",
    "preference",
    "rating",
    "rubric",
    "rubric_schema",
    "said",
    "transcript",
    "usable",
    "vqascore",
]

ANSWERED = 0.5
"""Least probability of the possible answers together: below it, the judge said something else."""
NEGLIGIBLE = 1e-3
"""How much probability an answer may have that is not known: at a list shorter than `answers.TOP`, or because a token
may be its beginning (then as a share of what is known)."""
YES, NO = frozenset({"yes"}), frozenset({"no"})
NO_TEXT = "NO TEXT"
"""The answer where there is nothing to read."""
WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
COUNTS = frozenset({*WORDS, *map(str, range(100)), "none", "many"})
WORD = re.compile(r"[a-z][a-z'-]*|[0-9]+")


class Unscored(Exception):
    """The answer is no score, for this reason."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A value, and its subscores."""

    value: float
    subscores: Mapping[str, float] = field(default_factory=dict)


def usable(answer: Answer | Failure) -> Answer:
    """Return an answer without a problem. Raises Unscored."""
    if isinstance(answer, Failure):
        raise Unscored(answer.reason)
    if answer.problem is not None:
        raise Unscored(answer.problem)
    return answer


def vqascore(answer: Answer, *, raw: bool) -> Verdict:
    """P(yes) / (P(yes) + P(no)) at the first token, or P(yes) with `raw`."""
    position = _first(answer)
    y, n = position.mass(YES), position.mass(NO)
    answered = _answered(y + n, position, answer, "Yes or No")
    return Verdict(min(1.0, y if raw else y / (y + n)), {"answered": answered})


def preference(answer: Answer) -> Verdict:
    """P(1) / (P(1) + P(2)) at the first token: how far the first picture is preferred."""
    position = _first(answer)
    first, second = position.mass({"1"}), position.mass({"2"})
    answered = _answered(first + second, position, answer, "1 or 2")
    return Verdict(first / (first + second), {"answered": answered})


def rating(answer: Answer, *, scale: str, after: str | None) -> Verdict:
    """Sum of s * P(s) over the sum of P(s), over the digits s of the scale at their position."""
    low, high = map(int, scale.split("-"))
    position = _first(answer) if after is None else _behind(answer, after)
    masses = {s: position.mass({str(s)}) for s in range(low, high + 1)}
    total = math.fsum(masses.values())
    answered = _answered(total, position, answer, f"a digit from {low} to {high}")
    value = math.fsum(s * p for s, p in masses.items()) / total
    return Verdict(min(float(high), max(float(low), value)), {"answered": answered})


def expected_probability(answer: Answer, question: str, expected: str) -> float:
    """Return the probability of the expected answer to a question, at the first token.

    A number counts as its word and its digits. An answer that is not among the 20 most probable tokens has at most the
    probability of the last of them, which takes its place: with 0 one rare word would decide a geometric mean. A
    shorter list does not tell how improbable it is. Nor is a word known that several tokens may spell: if a listed one
    may be its beginning, as "gir" of "giraffe", its probability is not that of the answer. Raises Unscored.
    """
    position, forms = _first(answer), _forms(expected)
    answered = position.mass(_possible(question, forms) or _words(position))
    _answered(answered, position, answer, "one word")
    known, floor = position.mass(forms), position.last()
    absent = [form for form in forms if not position.lists(form)]
    if len(absent) == len(forms) and len(position.top) < TOP:
        raise Unscored(
            f"{expected!r} is not among the most probable tokens, of which the server listed {len(position.top)} and "
            f"not {TOP}"
        )
    begun = math.fsum(
        math.exp(logprob)
        for token, logprob in position.top
        if (start := normal(token)) and start not in forms and any(form.startswith(start) for form in absent)
    )
    if begun > max(floor, NEGLIGIBLE * known):
        raise Unscored(
            f"{expected!r} may be several tokens, of which the first has a probability of {begun:.3g}; the answer "
            f"begins {_excerpt(answer.text)}"
        )
    return min(1.0, max(known, floor))


def said(answer: Answer, expected: str, probability: float) -> bool:
    """Return whether the judge gives the expected answer, whose probability is given.

    Of Yes and No, the more probable one; any other answer needs a probability of 1/2.
    """
    forms = _forms(expected)
    if forms <= YES | NO:
        position = _first(answer)
        return position.mass(forms) >= position.mass((YES | NO) - forms)
    return probability >= 0.5


def _forms(expected: str) -> frozenset[str]:
    word = " ".join(expected.split()).lower()
    if word in WORDS:
        return frozenset({word, str(WORDS.index(word))})
    if word.isdecimal() and int(word) < len(WORDS):
        return frozenset({word, WORDS[int(word)]})
    return frozenset({word})


def _possible(question: str, forms: frozenset[str]) -> frozenset[str] | None:
    """Return the answers that make sense; None where any word does."""
    if forms <= YES | NO:
        return YES | NO
    if question.lower().startswith("how many") or forms & COUNTS:
        return COUNTS | forms
    return None


def _words(position: Position) -> frozenset[str]:
    """Return what is a word among the tokens: a mark such as <think> is no answer."""
    return frozenset(form for token, _ in position.top if WORD.fullmatch(form := normal(token)))


# -- rubric ---------------------------------------------------------------------------------------------------------


def rubric(answer: Answer, aspects: Sequence[Aspect], answers: str) -> Verdict:
    """Weighted mean of (value - low) / (high - low) over the aspects that apply."""
    if answer.finish != "stop":
        raise Unscored("the answer was cut at max_tokens (finish_reason 'length')")
    found = _json_values(answer.text, aspects) if answers == "json" else _line_values(answer.text, aspects)
    scaled: dict[str, float] = {}
    for aspect in aspects:
        value = found[aspect.name]
        if value == "N/A":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Unscored(f"{aspect.name} is {clean(repr(value), 40)}, neither a number nor N/A")
        if not aspect.low <= value <= aspect.high:
            raise Unscored(f"{aspect.name} is {clean(repr(value), 40)}, not in [{aspect.low:g}, {aspect.high:g}]")
        scaled[aspect.name] = (value - aspect.low) / (aspect.high - aspect.low)
    if not scaled:
        raise Unscored("the judge says that no aspect applies")
    weights = {aspect.name: aspect.weight for aspect in aspects if aspect.name in scaled}
    total = math.fsum(weights.values())
    value = math.fsum(weights[name] * scaled[name] for name in scaled) / total
    return Verdict(min(1.0, max(0.0, value)), scaled)


def rubric_schema(aspects: Sequence[Aspect]) -> dict[str, Any]:
    """Return the JSON schema of a rubric's answer."""
    values = {
        aspect.name: {
            "anyOf": [
                {"type": "number", "minimum": aspect.low, "maximum": aspect.high},
                {"type": "string", "enum": ["N/A"]},
            ]
        }
        for aspect in aspects
    }
    return {"type": "object", "properties": values, "required": list(values), "additionalProperties": False}


def _json_values(text: str, aspects: Sequence[Aspect]) -> Mapping[str, Any]:
    try:
        data = as_json(text)
    except ValueError as error:
        raise Unscored(f"the answer is not the JSON that was asked for: {_excerpt(text)}") from error
    names = {aspect.name for aspect in aspects}
    if not isinstance(data, dict) or set(data) != names:
        raise Unscored(f"the answer does not have exactly the aspects {', '.join(sorted(names))}: {_excerpt(text)}")
    return data


def _line_values(text: str, aspects: Sequence[Aspect]) -> Mapping[str, Any]:
    lines = [line.partition(":") for line in text.splitlines() if line.strip()]
    keys = [key.strip(" *-").lower() for key, _, _ in lines]
    found: dict[str, Any] = {}
    for aspect in aspects:
        if keys.count(aspect.name.lower()) != 1:
            raise Unscored(f"the answer does not have exactly one line for {aspect.name}: {_excerpt(text)}")
        value = lines[keys.index(aspect.name.lower())][2].strip(" *")
        if value.upper() != "N/A" and not re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", value):
            raise Unscored(f"{aspect.name} is {clean(repr(value), 40)}, neither a number nor N/A")
        found[aspect.name] = "N/A" if value.upper() == "N/A" else float(value)
    return found


def transcript(answer: Answer) -> str:
    """Return what the judge read; empty if it says that there is no text."""
    if answer.finish != "stop":
        raise Unscored("the answer was cut at max_tokens (finish_reason 'length')")
    if not answer.text.strip():
        raise Unscored(f"the answer is empty, and not {NO_TEXT}")
    return "" if answer.text.strip(" .*\"'").upper() == NO_TEXT else answer.text.strip()


# -- positions ------------------------------------------------------------------------------------------------------


def _first(answer: Answer) -> Position:
    if not answer.tokens:
        raise Unscored("the server returned no log-probabilities; start it with them, or choose `form: rubric`")
    return answer.tokens[0]


def _behind(answer: Answer, mark: str) -> Position:
    """Return the first token behind a text that is not a space."""
    _first(answer)
    whole = "".join(position.token for position in answer.tokens)
    end = whole.find(mark) + len(mark)
    if mark not in whole:
        raise Unscored(f"the answer does not contain {mark!r}: {_excerpt(answer.text)}")
    start = 0
    for position in answer.tokens:
        if start >= end and position.token.strip():
            return position
        if start < end < start + len(position.token) and position.token[end - start :].strip():
            raise Unscored(f"the token that ends {mark!r} contains more than that")
        start += len(position.token)
    raise Unscored(f"the answer ends behind {mark!r}")


def _answered(mass: float, position: Position, answer: Answer, wanted: str) -> float:
    """Return the probability of the possible answers together. Raises Unscored if it is too low, or the list is shorter
    than what was asked for and tokens that it lacks may be probable."""
    if not mass >= ANSWERED:
        shown = f"the answer begins {_excerpt(answer.text)}"
        raise Unscored(f"{wanted} has a probability of only {mass:.3g}; {shown}")
    if len(position.top) < TOP and (unlisted := position.unlisted()) > NEGLIGIBLE:
        raise Unscored(
            f"the server listed only {len(position.top)} of the {TOP} most probable tokens, and others may have "
            f"probabilities up to {unlisted:.3g}"
        )
    return min(1.0, mass)


def _excerpt(text: str) -> str:
    line = " ".join(text[:200].split())
    return f"'{clean(line, 80)}'" if line else "with nothing"
