"""Check the scores that a reward returns, and convert diagnostics to JSON-serializable values."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from dgpo_core.contracts.version import GUIDE
from dgpo_core.types import Scores
from dgpo_schemas.diagnostics import LARGEST_SUBSCORE, MOST_SUBSCORES, SUBSCORE
from dgpo_schemas.text import lone_surrogate

__all__ = [
    "MOST",
    "TooMuch",
    "check_scores",
    "joined",
    "plain",
    "plain_diagnostics",
    "subscore_values",
    "valid_subscores",
]

log = logging.getLogger(__name__)

MOST = 2**20
"""Maximum number of values and characters in the diagnostics of one sample; a 1024 x 1024 mask just fits."""
TOO_MANY = f"more than {MOST} values and characters"
DEEPEST = 64
"""Maximum nesting depth of lists and mappings."""
OLD_KEY = "parts"
"""The key of `subscores` before version 3 of the plugin contract."""
LONGEST_INTEGER = 1024
"""Maximum number of bits of an integer; Python cannot format integers of more than 4300 digits."""


class TooMuch(ValueError):
    """A value is nested too deeply or too large."""


class _Budget:
    """The number of values and characters that may still be added."""

    def __init__(self, most: float) -> None:
        self.left = most

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise TooMuch(TOO_MANY)


def plain(value: Any, most: float = math.inf) -> Any:
    """Convert a value to JSON types: other types become a list, a number or a string.

    most: maximum number of values and characters. Raises TooMuch for larger values and for more than 64 levels of
    nesting, which includes values that contain themselves.
    """
    return _plain(value, _Budget(most), 0)


def _plain(value: Any, budget: _Budget, depth: int) -> Any:
    if depth > DEEPEST:
        raise TooMuch(f"more than {DEEPEST} levels of lists and mappings, or a value that contains itself")
    budget.spend(1)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= LONGEST_INTEGER else f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return _text(value, budget)
    if isinstance(value, Mapping):
        return {_text(str(key), budget): _plain(inner, budget, depth + 1) for key, inner in value.items()}
    if isinstance(value, Set):  # sorted, so that the order is the same on every rank
        return sorted((_plain(inner, budget, depth + 1) for inner in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | range):
        return [_plain(inner, budget, depth + 1) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview | range):
        budget.spend(len(value))
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        count = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
        if isinstance(count, int) and count > budget.left:  # checked before the list is created
            raise TooMuch(TOO_MANY)
        return _plain(value.tolist(), budget, depth + 1)
    return _text(str(value), budget)


def _text(text: str, budget: _Budget) -> str:
    budget.spend(len(text))
    # A lone surrogate cannot be encoded as UTF-8.
    return text if lone_surrogate(text) is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_diagnostics(diagnostics: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the diagnostics of one sample to JSON types; never raises.

    Numbers that are not finite become null. A value that contains itself, is too large (`MOST`) or raises when it is
    read is replaced by a text that says so.
    """
    budget, converted = _Budget(MOST), {}
    try:
        items = list(diagnostics.items())
    except Exception as error:
        return {"diagnostics": f"(left out: {_name(error)} when they were read)"}
    for key, value in items:
        before = budget.left
        try:
            converted[_text(str(key), budget)] = _finite(_plain(value, budget, 1))
        except BaseException as error:  # third-party objects may raise anything
            budget.left = before
            reason = str(error) if isinstance(error, TooMuch) else f"{_name(error)} when it was read"
            converted[key if isinstance(key, str) and len(key) < 100 else "(a key)"] = f"(left out: {reason})"
    return converted


def _name(error: BaseException) -> str:
    return type(error).__name__


def _finite(value: Any) -> Any:
    """Replace nan and inf in plain values by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def check_scores(scores: Scores, count: int) -> Scores:
    """Return the scores on the CPU with JSON-serializable diagnostics.

    Raises ValueError unless there is one value and one missing flag per sample, and diagnostics for every sample or
    none.
    """
    if not isinstance(scores, Scores):
        raise ValueError(f"returned {type(scores).__name__}, not Scores")
    for name, tensor in (("values", scores.values), ("missing", scores.missing)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"returned {name} of type {type(tensor).__name__}, not a tensor")
    if scores.values.shape != (count,) or scores.missing.shape != (count,):
        raise ValueError(
            f"returned values {tuple(scores.values.shape)} and missing {tuple(scores.missing.shape)} "
            f"for {count} samples"
        )
    if scores.values.is_complex():
        raise ValueError(f"returned values of {scores.values.dtype}, not real numbers")
    if scores.missing.dtype != torch.bool:
        raise ValueError(f"returned a missing mask of {scores.missing.dtype}, not torch.bool")
    return Scores(scores.values.detach().cpu(), scores.missing.cpu(), _diagnostics(scores.diagnostics, count))


def _diagnostics(diagnostics: Any, count: int) -> tuple[dict[str, Any], ...]:
    is_list = isinstance(diagnostics, Sequence) and not isinstance(diagnostics, str | bytes)
    if diagnostics is None or (is_list and not len(diagnostics)):
        return tuple({} for _ in range(count))
    if not is_list:
        raise ValueError(f"returned diagnostics of type {type(diagnostics).__name__}, not one mapping per sample")
    if len(diagnostics) != count:
        raise ValueError(f"returned {len(diagnostics)} diagnostics for {count} samples")
    if not all(isinstance(entry, Mapping) for entry in diagnostics):
        raise ValueError("returned diagnostics that are not mappings")
    return tuple(plain_diagnostics(entry) for entry in diagnostics)


def joined(parts: Sequence[Scores]) -> Scores:
    """Concatenate the checked scores of several batches."""
    return Scores(
        torch.cat([part.values for part in parts]),
        torch.cat([part.missing for part in parts]),
        tuple(entry for part in parts for entry in part.diagnostics),
    )


def valid_subscores(scores: Scores) -> tuple[Scores, str | None]:
    """Remove invalid `subscores` from checked scores; also return the first problem, None if all are valid.

    Subscores are finite numbers by name (`dgpo_schemas.diagnostics`). Those under the key of an older contract are
    reported, because they would be lost silently.
    """
    kept: list[Mapping[str, Any]] = []
    first_problem: str | None = None
    for entry in scores.diagnostics:
        if "subscores" not in entry:
            first_problem = first_problem or _old_key(entry)
            kept.append(entry)
            continue
        problem = _subscores_problem(entry["subscores"])
        kept.append(entry if problem is None else {key: value for key, value in entry.items() if key != "subscores"})
        first_problem = first_problem or problem
    if first_problem is None:
        return scores, None
    return Scores(scores.values, scores.missing, tuple(kept)), first_problem


def _old_key(entry: Mapping[str, Any]) -> str | None:
    """The message for diagnostics with subscores under `parts`, their key before version 3 of the contract."""
    if isinstance(found := entry.get(OLD_KEY), Mapping) and found and _subscores_problem(found) is None:
        return (
            f"its diagnostics have subscores under {OLD_KEY!r}, which is called 'subscores' since version 3 of the "
            f"plugin contract ({GUIDE})"
        )
    return None


def _subscores_problem(subscores: Any) -> str | None:
    if not isinstance(subscores, Mapping):
        return f"its `subscores` are {type(subscores).__name__}, not a mapping of names to numbers"
    if len(subscores) > MOST_SUBSCORES:
        return f"it has {len(subscores)} `subscores`, more than {MOST_SUBSCORES}"
    for name, value in subscores.items():
        if re.fullmatch(SUBSCORE, name) is None:
            return (
                f"the name {name[:100]!r} in its `subscores` must consist of letters, digits, dots, dashes and "
                "underscores"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):  # nan and inf are already None
            return f"the value of {name!r} in its `subscores` is not a finite number"
        if abs(value) > LARGEST_SUBSCORE:
            return f"the value of {name!r} in its `subscores` is beyond {LARGEST_SUBSCORE:g}"
    return None


def subscore_values(diagnostics: Sequence[Mapping[str, Any]], values: Tensor) -> dict[str, Tensor]:
    """Collect the subscores of N samples by name, sorted: float64 [N], nan where missing or where `values` [N] is.

    Only the first MOST_SUBSCORES names are kept, with a warning: a reward should have few names, not one per sample.
    """
    missing = values.isnan().tolist()
    names = sorted({name for entry in diagnostics for name in entry.get("subscores") or ()})
    if len(names) > MOST_SUBSCORES:
        log.warning(
            "a reward returned %d different `subscores`, %s and so on: the first %d are kept",
            len(names),
            names[0],
            MOST_SUBSCORES,
        )
    return {
        name: torch.tensor(
            [
                math.nan if lost else float((entry.get("subscores") or {}).get(name, math.nan))
                for entry, lost in zip(diagnostics, missing, strict=True)
            ],
            dtype=torch.float64,
        )
        for name in names[:MOST_SUBSCORES]
    }
