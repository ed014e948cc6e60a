"""Times as people write them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dgpo_schemas.base import StrictModel
from dgpo_schemas.sigma import Shift, SigmaExpression, resolve_sigma


class Model(StrictModel):
    """One time."""

    t: SigmaExpression


@pytest.mark.parametrize(
    ("written", "shift", "expected"),
    [
        (0.25, 3.0, 0.25),
        ("0.25", 3.0, 0.25),
        ("2.5e-1", 3.0, 0.25),
        (1, 3.0, 1.0),
        (0, 3.0, 0.0),
        # Published values: shift 3 takes 0.3 to 0.5625, 0.4 to 0.6667 and 0.6 to 0.8182.
        ("shift(0.3)", 3.0, 0.5625),
        ("shift( 0.4 )", 3.0, 2 / 3),
        (" shift(0.6) ", 3.0, 9 / 11),
        ("shift(0.3)", 1.0, 0.3),
        ("shift(0)", 5.0, 0.0),
        ("shift(1)", 0.2, 1.0),
    ],
)
def test_what_is_written_becomes_a_sigma(written: Any, shift: float, expected: float) -> None:
    assert resolve_sigma(Model(t=written).t, shift) == pytest.approx(expected, abs=1e-15)


@given(st.fractions(0, 1, max_denominator=1000), st.fractions(Fraction(1, 10), 10, max_denominator=100))
def test_the_shift_in_exact_fractions(s: Fraction, k: Fraction) -> None:
    exact = k * s / (1 + (k - 1) * s)
    assert resolve_sigma(Model(t=f"shift({float(s)!r})").t, float(k)) == pytest.approx(float(exact), abs=1e-12)


@pytest.mark.parametrize("written", [1.5, "1.5", "shift(1.5)", math.inf, 10**400, "1" + 400 * "0"])
def test_too_much_names_the_nearest(written: Any) -> None:
    with pytest.raises(ValidationError, match=r"a number from 0 \(data\) to 1 \(noise\), or shift.*the nearest is 1"):
        Model(t=written)


@pytest.mark.parametrize("written", [-0.1, "shift(-2)", -(10**400)])
def test_too_little_names_the_nearest(written: Any) -> None:
    with pytest.raises(ValidationError, match="the nearest is 0"):
        Model(t=written)


@pytest.mark.parametrize(
    "written",
    ["noise", "", "shift", "shift()", "shift(a)", "shift(shift(0))", "shift(0.3) x", True, None, [0.1], "nan"],
)
def test_nonsense_says_what_is_allowed(written: Any) -> None:
    with pytest.raises(ValidationError, match=r"must be a number from 0 \(data\) to 1 \(noise\), or shift\(s\)"):
        Model(t=written)


class Shifted(StrictModel):
    shift: Shift


@pytest.mark.parametrize(
    ("written", "expected"), [("auto", "auto"), (" auto ", "auto"), (3, 3.0), ("3e0", 3.0), (0.001, 0.001)]
)
def test_shifts(written: Any, expected: Any) -> None:
    assert Shifted(shift=written).shift == expected


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (0, "at least 0.001 and at most 1000; the nearest is 0.001"),
        (10**400, "the nearest is 1000"),
        (-(10**400), "the nearest is 0.001"),
        ("atuo", r"must be auto \(the model's own\), or a number .*; did you mean auto"),
        ("3 x", "must be auto"), (None, "must be auto"), ([1], "must be auto"), (True, "not the boolean 'true'"),
        (math.nan, "a finite number, not nan"), ("inf", "a finite number, not inf"),
    ],
)  # fmt: skip
def test_what_is_no_shift(written: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Shifted(shift=written)
