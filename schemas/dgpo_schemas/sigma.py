"""Times in run files: a sigma in [0, 1], or `shift(s)`, which applies the time shift to s."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, WithJsonSchema

__all__ = ["AUTO", "Shift", "SigmaExpression", "resolve_sigma"]

AUTO: Literal["auto"] = "auto"
SMALLEST_SHIFT, LARGEST_SHIFT = 0.001, 1000.0

_SHIFTED = re.compile(r"^shift\(\s*([^()]+?)\s*\)$")
_ALLOWED = "a number from 0 (data) to 1 (noise), or shift(s) with s from 0 to 1, such as shift(0.3)"


def _number(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"must be {_ALLOWED}") from None
    except OverflowError:  # an integer with hundreds of digits
        value = math.inf if text > 0 else -math.inf
    if not 0 <= value <= 1:
        near = "" if math.isnan(value) else f"; the nearest is {min(max(value, 0.0), 1.0):g}"
        raise ValueError(f"must be {_ALLOWED}{near}")
    return value


def _parse(value: Any) -> float | str:
    """Return a number as it is, and `shift( 0.3 )` as `shift(0.3)`."""
    if isinstance(value, bool):
        raise ValueError(f"must be {_ALLOWED}")
    if isinstance(value, str) and (match := _SHIFTED.match(value.strip())):
        return f"shift({repr(_number(match[1])).removesuffix('.0')})"
    return _number(value)


SigmaExpression = Annotated[
    float | str,
    BeforeValidator(_parse),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": r"^(shift\(\s*[0-9.eE+-]+\s*\)|[0-9.eE+-]+)$"},
            ]
        }
    ),
]
"""A sigma as written in a run file; `resolve_sigma` converts it to a number."""


def _parse_shift(value: Any) -> float | str:
    allowed = f"auto (the model's own), or a number of at least {SMALLEST_SHIFT} and at most {LARGEST_SHIFT:g}"
    if isinstance(value, bool):
        raise ValueError(f"must be {allowed}, not the boolean {str(value).lower()!r}")
    if isinstance(value, str) and value.strip() == AUTO:
        return AUTO
    try:
        number = float(value)
    except (TypeError, ValueError):
        near = get_close_matches(value.lower(), [AUTO]) if isinstance(value, str) else []
        raise ValueError(f"must be {allowed}" + (f"; did you mean {AUTO}?" if near else "")) from None
    except OverflowError:  # an integer with hundreds of digits
        number = LARGEST_SHIFT * 2 if value > 0 else 0.0
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, not {number}")
    if not SMALLEST_SHIFT <= number <= LARGEST_SHIFT:
        nearest = min(max(number, SMALLEST_SHIFT), LARGEST_SHIFT)
        raise ValueError(f"must be {allowed}; the nearest is {nearest:g}")
    return number


Shift = Annotated[
    float | Literal["auto"],
    BeforeValidator(_parse_shift),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": SMALLEST_SHIFT, "maximum": LARGEST_SHIFT},
                {"type": "string", "pattern": r"^(\s*auto\s*|[0-9.eE+-]+)$"},
            ]
        }
    ),
]
"""A time shift k as written in a run file, or `auto` for the model's own shift."""


def resolve_sigma(expression: float | str, shift: float) -> float:
    """Convert to a sigma in [0, 1]: `shift(s)` is k*s / (1 + (k-1)*s) with k = shift; a number is returned as it is.

    Example: shift(0.3) with k = 3 is 0.5625.
    """
    if isinstance(expression, str):
        match = _SHIFTED.match(expression)
        assert match is not None, expression
        s = float(match[1])
        return shift * s / (1 + (shift - 1) * s)
    return expression
