"""The formulas, against closed forms and loops in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgpo_judge.answers import Answer, Position
from dgpo_judge.client import Failure
from dgpo_judge.forms import (
    Unscored,
    expected_probability,
    preference,
    rating,
    rubric,
    rubric_schema,
    usable,
    vqascore,
)
from dgpo_judge.options import ASPECTS, Aspect

SPELLINGS = st.sampled_from(["{}", " {}", "\u2581{}", "\u0120{}", "{}\n"])


def at(probabilities: dict[str, float], text: str = "") -> Position:
    return Position(text or next(iter(probabilities)), tuple((t, math.log(p)) for t, p in probabilities.items()))


def answer(*positions: Position, text: str = "", finish: str = "stop") -> Answer:
    return Answer(text or "".join(p.token for p in positions), finish, positions)


@given(
    st.lists(st.tuples(SPELLINGS, st.sampled_from(["Yes", "yes", "NO", "No", "Maybe"]), st.floats(0.001, 1)),
             min_size=1, max_size=20)
)  # fmt: skip
def test_vqascore(tokens: list[tuple[str, str, float]]) -> None:
    """Summed over spellings of yes and no; missing below a half."""
    total = sum(p for _, _, p in tokens)
    top = tuple((spelling.format(word), math.log(p / total)) for spelling, word, p in tokens)
    y = sum(p / total for _, word, p in tokens if word.lower() == "yes")
    n = sum(p / total for _, word, p in tokens if word.lower() == "no")
    given_answer = answer(Position("x", top))
    if y + n < 0.5 - 1e-9:
        with pytest.raises(Unscored, match="Yes or No has a probability of only"):
            vqascore(given_answer, raw=False)
    elif y + n > 0.5 + 1e-9:
        assert vqascore(given_answer, raw=False).value == pytest.approx(y / (y + n), abs=1e-12)
        assert vqascore(given_answer, raw=True).value == pytest.approx(y, abs=1e-12)


@pytest.mark.parametrize(("scale", "low", "high"), [("1-5", 1, 5), ("0-9", 0, 9)])
def test_rating_is_the_expected_digit(scale: str, low: int, high: int) -> None:
    weights = {s: (s + 1) ** 2 for s in range(low, high + 1)}
    mass = 1.25 * sum(weights.values())  # the rest is on other tokens
    position = at({**{str(s): w / mass for s, w in weights.items()}, "10": 0.1, "good": 0.1})
    verdict = rating(answer(position), scale=scale, after=None)
    assert verdict.value == pytest.approx(sum(s * w for s, w in weights.items()) / sum(weights.values()), abs=1e-12)
    assert verdict.subscores["answered"] == pytest.approx(0.8)
    with pytest.raises(Unscored, match="a digit from"):
        rating(answer(at({"10": 0.6, "5": 0.4})), scale=scale, after=None)


@pytest.mark.parametrize(
    "tokens", [["It is fine. ", "Score", ":", " ", "4"], ["Score:", " 4"], ["Final Score:", "\n", "4", ", 1"]]
)
def test_rating_behind_a_mark(tokens: list[str]) -> None:
    positions = [at({"4": 0.75, "2": 0.25}, token) if token.strip() == "4" else at({token: 1.0}) for token in tokens]
    assert rating(answer(*positions), scale="1-5", after="Score:").value == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [(["4"], "does not contain 'Score:'"), (["Score:"], "ends behind"), (["Score:4"], "contains more than that"),
     (["Score:", " "], "ends behind")],
)  # fmt: skip
def test_rating_without_its_mark(tokens: list[str], reason: str) -> None:
    with pytest.raises(Unscored, match=reason):
        rating(answer(*(at({token: 1.0}) for token in tokens)), scale="1-5", after="Score:")


@pytest.mark.parametrize(
    ("question", "expected", "top", "value"),
    [
        ("Is it?", "Yes", {"Yes": 0.5, " yes": 0.2, "No": 0.3}, 0.7),
        ("Is it?", "no", {"Yes": 0.5, " yes": 0.2, "No": 0.3}, 0.3),
        ("How many?", "seven", {"seven": 0.3, " Seven": 0.2, "7": 0.1, "six": 0.4}, 0.6),
        ("How many?", "7", {"seven": 0.3, " Seven": 0.2, "7": 0.1, "six": 0.4}, 0.6),
        ("How many?", "3", {"two": 0.9, "2": 0.05, "one": 0.05}, 0.05),
        ("What color?", "Red", {"red": 0.6, "Crimson": 0.4}, 0.6),
        ("What color?", "red", {"blue": 0.6, "green": 0.4}, 0.4),
    ],
)
def test_expected_answers(question: str, expected: str, top: dict[str, float], value: float) -> None:
    """An answer that is not listed counts as the least probable of the list."""
    assert expected_probability(answer(at(top)), question, expected) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("question", "top"),
    [
        ("Is it?", {"<think>": 0.9, "Yes": 0.1}),
        ("How many?", {"Let": 0.9, "3": 0.1}),
        ("What?", {"<": 0.9, "red": 0.1}),
    ],
)
def test_thoughts_are_no_expected_answers(question: str, top: dict[str, float]) -> None:
    with pytest.raises(Unscored, match=r"one word has a probability of only 0\.1"):
        expected_probability(answer(at(top)), question, {"Is it?": "yes", "How many?": "3"}.get(question, "red"))


def test_preference() -> None:
    assert preference(answer(at({"1": 0.3, " 1": 0.3, "2": 0.2, "x": 0.2}))).value == pytest.approx(0.75)
    with pytest.raises(Unscored):
        preference(answer(at({"Both": 0.6, "1": 0.4})))


ASPECT = [Aspect(name="a"), Aspect(name="b", low=0, high=10, weight=3)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 3, "b": 10}', (0.5 + 3 * 1) / 4),
        ('{"b": 2.5, "a": 1}', (0 + 3 * 0.25) / 4),
        ('{"a": "N/A", "b": 5}', 0.5),
        (' {"a": 5, "b": "N/A"}\n', 1.0),
    ],
)
def test_rubric(text: str, value: float) -> None:
    assert rubric(answer(text=text), ASPECT, "json").value == pytest.approx(value, abs=1e-15)
    lines = "\n".join(f"- **{name.upper()}**: {found} " for name, found in json.loads(text).items())
    assert rubric(answer(text=lines), ASPECT, "lines").value == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not the JSON"), ("4", "exactly the aspects"), ("[3, 4]", "exactly the aspects"),
        ('```json\n{"a": 3, "b": 4}\n```', "is not the JSON"), ('{"a": 3}', "exactly the aspects"),
        ('{"a": 3, "b": 4, "c": 5}', "exactly the aspects"), ('{"a": 3, "b": 4, "b": 9}', "is not the JSON"),
        ('{"a": 3, "b": NaN}', "is not the JSON"), ('{"a": 3, "b": "4"}', "neither a number"),
        ('{"a": true, "b": 4}', "neither a number"), ('{"a": null, "b": 4}', "neither a number"),
        ('{"a": 0.99, "b": 4}', "not in [1, 5]"), ('{"a": 3, "b": 1e400}', "not in [0, 10]"),
        ('{"a": "N/A", "b": "N/A"}', "no aspect applies"), ('{"a": 3, "b": [4]}', "neither a number"),
    ],
)  # fmt: skip
def test_rubrics_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(Unscored) as caught:
        rubric(answer(text=text), ASPECT, "json")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 3",
        "a: 3\nb: four",
        "a: 3\nb: 4\nb: 5",
        "a: 3\nb: 11",
        "a (1-5): 3\nb: 4",
        "a: 3/5\nb: 4",
        "a: 3\nb: inf",
    ],
)
def test_lines_that_are_no_rubric(text: str) -> None:
    with pytest.raises(Unscored):
        rubric(answer(text=text), ASPECT, "lines")


def test_a_cut_rubric_is_none() -> None:
    with pytest.raises(Unscored, match="cut at max_tokens"):
        rubric(answer(text='{"a": 3, "b": 4}', finish="length"), ASPECT, "json")


def test_the_schema_of_a_rubric() -> None:
    schema = rubric_schema(ASPECTS)
    assert schema["required"] == ["alignment", "coherence", "style"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["style"]["anyOf"][0] == {"type": "number", "minimum": 1, "maximum": 5}


@pytest.mark.parametrize("failed", [Failure("no server"), Answer(problem="no server")])
def test_failures_are_unscored(failed: Any) -> None:
    with pytest.raises(Unscored, match="no server"):
        usable(failed)
