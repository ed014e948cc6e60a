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
    said,
    usable,
    vqascore,
)
from dgpo_judge.options import ASPECTS, Aspect

RARE = {f"rare{'abcdefghijklmnopqrst'[i]}": 0.001 for i in range(20)}
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
        ("How many?", "3", {"two": 0.9, **RARE}, 0.001),
        ("What color?", "Red", {"red": 0.6, "Crimson": 0.4}, 0.6),
        ("What color?", "red", {"blue": 0.6, "green": 0.35, **RARE}, 0.001),
        ("What color?", "red", {"blue": 0.6, "green": 0.35, "re": 0.0005, **RARE}, 0.0005),
        ("How many?", "16", {"16": 0.97, "six": 0.0005, **RARE}, 0.97),
    ],
)
def test_expected_answers(question: str, expected: str, top: dict[str, float], value: float) -> None:
    """An answer that is not among 20 counts as the least probable of them."""
    assert expected_probability(answer(at(top)), question, expected) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("question", "expected", "top", "reason"),
    [
        ("Is it?", "Yes", {"No": 0.97}, "listed only 1 of the 20 most probable tokens, .* up to 0.03"),
        ("Is it?", "No", {"No": 0.97}, "listed only 1 of the 20"),
        ("Is it?", "Yes", {"No": 0.99, "Na": 0.0099}, "'Yes' is not among .* the server listed 2 and not 20"),
        ("What color?", "red", {"blue": 0.6, "green": 0.4}, "'red' is not among"),
        ("What animal?", "giraffe", {"gir": 0.98, **RARE}, "'giraffe' may be several tokens, of which the first has"),
        ("What animal?", "giraffe", {" Gir": 0.5, "giraffe": 0.4, **RARE}, None),
        ("How many?", "16", {"1": 0.9, "sixteen": 0.05, **RARE}, "'16' may be several tokens"),
    ],
)
def test_a_part_of_an_answer_is_none(question: str, expected: str, top: dict[str, float], reason: str | None) -> None:
    """Neither a list shorter than asked for, nor the beginning of a word."""
    if reason is None:
        assert expected_probability(answer(at(top)), question, expected) == pytest.approx(top[expected])
    else:
        with pytest.raises(Unscored, match=reason):
            expected_probability(answer(at(top)), question, expected)


def test_short_lists_leave_no_score_open() -> None:
    """With one of 20 tokens, the other answer may be nearly as probable; where the rest is negligible it cannot."""
    short = "listed only 1 of the 20 most probable tokens, and others may have probabilities up to 0.4"
    for score in (
        lambda top: vqascore(answer(at({"Yes": top})), raw=False),
        lambda top: preference(answer(at({"1": top}))),
        lambda top: rating(answer(at({"4": top})), scale="1-5", after=None),
    ):
        with pytest.raises(Unscored, match=short):
            score(0.6)
        assert score(0.9995).value in (1.0, 4.0)
    full = {"Yes": 0.6, **{f"x{i}": 0.4 / 19 for i in range(19)}}
    assert vqascore(answer(at(full)), raw=False).value == 1.0


@pytest.mark.parametrize(
    ("expected", "top", "ok"),
    [
        ("yes", {"Yes": 0.45, "No": 0.2, "It": 0.3496}, True),
        ("no", {"Yes": 0.45, "No": 0.2, "It": 0.3496}, False),
        ("No", {"No": 0.3, " no": 0.2, "yes": 0.3, "It": 0.1996}, True),
        ("Yes", {"No": 0.4998, "Yes": 0.4998}, True),
        ("red", {"red": 0.45, "blue": 0.2, "It": 0.3496}, False),
        ("red", {"red": 0.5, "blue": 0.4996}, True),
    ],
)
def test_what_the_judge_says(expected: str, top: dict[str, float], ok: bool) -> None:
    """Of Yes and No the more probable one, whatever share other words have."""
    given_answer = answer(at({**top, "Perhaps": 0.0003}))
    assert said(given_answer, expected, expected_probability(given_answer, "Is it?", expected)) is ok


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
