"""Pydantic's findings in plain words, for every kind of field that run files and plugins have."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from dgpo_schemas.base import Float, Int, Options, StrictModel, Use
from dgpo_schemas.places import PathOrName
from dgpo_schemas.problems import ConfigError, Problem, dotted, explain, nearest, show


class Inner(StrictModel):
    """A section."""

    rank: Int = Field(default=1, ge=1, description="Rank of it.")
    other: Int | Annotated[list[Int], Field(min_length=2, max_length=2)] = Field(default=1, description="One or two.")


class Everything(Options):
    """One field of each kind."""

    needed: str = Field(min_length=1, description="What is needed.")
    place: PathOrName = Field(default="a", min_length=1, description="A path.")
    short: str = Field(default="a", max_length=3, description="Short.")
    patterned: str = Field(default="a", pattern="^[a-z]+$", description="Lower-case letters only.")
    whole: Int = Field(default=0, ge=0, le=10, description="Whole.")
    real: Float = Field(default=0.5, gt=0, lt=1, description="Real.")
    maybe: Float | None = Field(default=None, description="Maybe.")
    ema_rollouts_after: bool = Field(default=False, description="Switch.")
    mode: Literal["fast", "slow", "medium"] = Field(default="fast", description="Mode.")
    names: list[str] = Field(default_factory=list, max_length=2, description="Names.")
    inner: Inner = Field(default_factory=Inner, description="Inner.")
    inners: list[Inner] = Field(default_factory=list, description="Inners.")
    by_name: dict[str, Inner] = Field(default_factory=dict, description="By name.")
    free: dict[str, Any] = Field(default_factory=dict, description="Free.")
    component: Use | None = Field(default=None, description="A component.")
    even: Int = Field(default=0, description="Even.")
    size: Annotated[Int, Field(ge=1)] | Literal["auto"] | None = Field(default=None, description="A number, or a word.")
    pair: tuple[Int, Int] = Field(default=(0, 1), description="A pair.")

    @field_validator("even")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"must be even; the nearest are {value - 1} and {value + 1}")
        return value


def said(data: Any) -> list[str]:
    """key: message of each mistake."""
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate(data)
    return [f"{dotted(path)}: {message}" for path, message in explain(Everything, data, caught.value)]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("needed", "", "needed: must not be empty"),
        ("place", "", "place: must not be empty"),
        ("needed", 3, "needed: must be a string, not 3 (put it in quotes)"),
        ("needed", None, "needed: must be a string, not null"),
        ("needed", ["a"], "needed: must be a string, not a list"),
        ("needed", "\ud800", r"needed: must be a string of valid Unicode characters, not '\ud800'"),
        ("short", "abcd", "short: must have at most 3 characters, not 4"),
        ("patterned", "A1", "patterned: 'A1' is not allowed here: Lower-case letters only."),
        ("whole", "ten", "whole: must be an integer, not 'ten'"),
        ("whole", 2.5, "whole: must be an integer, not 2.5"),
        ("whole", None, "whole: must be an integer, not null"),
        ("whole", -1, "whole: must be at least 0, not -1"),
        ("whole", 11, "whole: must be at most 10, not 11"),
        ("whole", True, "whole: must be a number, not the boolean 'true'"),
        (
            "whole",
            "9" * 5000,
            f"whole: must be an integer of at most 64 bits, not '{'9' * 49}... (5002 characters)",
        ),
        ("real", 0, "real: must be greater than 0, not 0"),
        ("real", 1.0, "real: must be less than 1, not 1.0"),
        ("real", float("nan"), "real: must be a finite number, not nan"),
        ("real", "half", "real: must be a number, not 'half'"),
        ("real", {}, "real: must be a number, not a section"),
        ("maybe", float("inf"), "maybe: must be a finite number, not inf"),
        ("maybe", "x", "maybe: must be a number, not 'x'"),
        ("ema_rollouts_after", "maybe", "ema_rollouts_after: must be true or false, not 'maybe'"),
        ("ema_rollouts_after", 2, "ema_rollouts_after: must be true or false, not 2"),
        ("mode", "fats", "mode: must be fast, slow or medium, not 'fats'; did you mean fast?"),
        ("mode", 3, "mode: must be fast, slow or medium, not 3"),
        ("size", "atuo", "size: must be an integer or auto, not 'atuo'; did you mean auto?"),
        ("size", 0, "size: must be at least 1 or auto, not 0"),
        ("names", "a", "names: must be a list, not 'a'"),
        ("names", ["a", "b", "c"], "names: must have at most 2 entries, not 3"),
        ("names", ["a", 4], "names.1: must be a string, not 4 (put it in quotes)"),
        ("inner", 3, "inner: must be a section with keys such as other, rank, not 3"),
        ("inner", {"rnak": 1}, "inner.rnak: unknown key; did you mean rank?"),
        ("inner", {"zzz": 1}, "inner.zzz: unknown key; allowed: other, rank"),
        ("inner", {"mode": 1}, "inner.mode: unknown key; did you mean mode?"),
        ("inner", {"other": "x"}, "inner.other: must be an integer or a list, not 'x'"),
        ("inner", {"other": [1, "x"]}, "inner.other.1: must be an integer, not 'x'"),
        ("inner", {"other": [1]}, "inner.other: must have at least 2 entries, not 1"),
        ("inners", [{}, {"rank": 0}], "inners.1.rank: must be at least 1, not 0"),
        ("inners", [{}, {"ran": 0}], "inners.1.ran: unknown key; did you mean rank?"),
        ("by_name", {"x": {"rank": 0}}, "by_name.x.rank: must be at least 1, not 0"),
        ("by_name", {"x": {"ran": 0}}, "by_name.x.ran: unknown key; did you mean rank?"),
        ("free", [1], "free: must be a section of keys and values, not a list"),
        ("component", "", "component: must not be empty"),
        ("component", {"ues": "x", "use": "y"}, "component.ues: unknown key; did you mean use?"),
        ("component", 3, "component: must be a section with keys such as options, use, not 3"),
        ("even", 3, "even: must be even; the nearest are 2 and 4 (got 3)"),
        ("pair", [1, "x"], "pair.1: must be an integer, not 'x'"),
    ],
)
def test_a_mistake(field: str, value: Any, expected: str) -> None:
    assert said({"needed": "x", field: value}) == [expected]


def test_a_missing_key_says_what_it_is_for() -> None:
    assert said({}) == ["needed: is missing (What is needed)"]
    assert said({"needed": "x", "component": {}}) == [
        "component.use: is missing (Name of the component; `dgpo plugins list` lists all names)"
    ]


def test_an_unknown_key_that_stands_elsewhere() -> None:
    assert said({"needed": "x", "rank": 1}) == ["rank: unknown key; did you mean inner.rank?"]


def test_a_model_without_keys() -> None:
    class Nothing(Options):
        """No options."""

    with pytest.raises(ValidationError) as caught:
        Nothing.model_validate({"x": 1})
    assert explain(Nothing, {"x": 1}, caught.value) == [(("x",), "unknown key; allowed: none")]


def test_every_mistake_is_reported() -> None:
    assert len(said({"whole": "x", "real": "y", "inner": {"rank": 0}, "nope": 1})) == 5


def test_no_word_of_pydantic_is_left() -> None:
    jargon = re.compile(r"Input should|Value error|Extra inputs|Field required|valid (integer|dictionary|string|list)")
    values: list[Any] = [None, True, 3, 2.5, float("nan"), "", "x", [], [None], {}, {"x": 1}, "9" * 5000]
    for field in Everything.model_fields:
        for value in values:
            try:
                Everything.model_validate({"needed": "x", field: value})
            except ValidationError:
                for line in said({"needed": "x", field: value}):
                    assert not jargon.search(line), line


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "null"), (True, "true"), ({"a": 1}, "a section"), ([1], "a list"), ("a", "'a'"), (1.5, "1.5")],
)
def test_values_are_shown_as_they_are_written(value: Any, expected: str) -> None:
    assert show(value) == expected


def test_long_values_are_cut_short() -> None:
    assert len(show("x" * 10_000)) < 80


@pytest.mark.parametrize(
    ("name", "expected"),
    [("scor", "; did you mean score?"), ("abs", "; did you mean abs-advantage?"), ("zzz", ""), ("a", "")],
)
def test_the_nearest_choice(name: str, expected: str) -> None:
    assert nearest(name, ["score", "abs-advantage", "timing"]) == expected


def test_how_a_problem_reads() -> None:
    assert str(Problem("run.yaml:3", "a.b", "is wrong")) == "run.yaml:3: a.b: is wrong"
    assert str(Problem("run.yaml", "", "is wrong")) == "run.yaml: is wrong"
    assert str(Problem("--set a.b=1", "a.b", "is wrong")) == "--set a.b=1: is wrong"
    assert str(Problem("--set a={b: 1}", "a.b", "is wrong")) == "--set a={b: 1}: a.b: is wrong"
    assert str(ConfigError([Problem("f", "a", "x"), Problem("f", "b", "y")])) == "f: a: x\nf: b: y"


def test_keys_that_cannot_be_printed_are_escaped() -> None:
    assert dotted(("a", "b\n", 0)) == "a.'b\\n'.0"
