"""What a reward returns: whether it is one score a sample, and its diagnostics as JSON can hold them."""

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
"""Values and characters of the diagnostics of one sample that are kept; a mask of 1024 x 1024 is not far below."""
TOO_MANY = f"more than {MOST} values and characters"
DEEPEST = 64
"""Levels of lists and mappings in each other; what refers to itself has more."""
OLD_KEY = "parts"
"""The key of `subscores` before version 3 of the plugin contract."""
LONGEST_INTEGER = 1024
"""Bits; Python refuses to write integers of more than 4300 digits."""


class TooMuch(ValueError):
    """A value with more levels or more values than a message may have."""


class _Budget:
    """How many values and characters may still come."""

    def __init__(self, most: float) -> None:
        self.left = most

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise TooMuch(TOO_MANY)


def plain(value: Any, most: float = math.inf) -> Any:
    """A value as JSON can hold it: what JSON has no word for becomes a list, a number or a text.

    most: values and characters that it may have. Raises TooMuch for more, and for more than 64 levels, which is what a
    value that contains itself has.
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
    if isinstance(value, Set):  # in an order that is the same in every process
        return sorted((_plain(inner, budget, depth + 1) for inner in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview | range):
        return [_plain(inner, budget, depth + 1) for inner in value]
    if isinstance(value, bytes | bytearray | memoryview | range):
        budget.spend(len(value))
    if hasattr(value, "tolist"):  # tensors, arrays and their scalars
        count = value.numel() if isinstance(value, Tensor) else getattr(value, "size", 1)
        if isinstance(count, int) and count > budget.left:  # before the list is made
            raise TooMuch(TOO_MANY)
        return _plain(value.tolist(), budget, depth + 1)
    return _text(str(value), budget)


def _text(text: str, budget: _Budget) -> str:
    budget.spend(len(text))
    # Half of a pair can be written into no file.
    return text if lone_surrogate(text) is None else text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain_diagnostics(said: Mapping[str, Any]) -> dict[str, Any]:
    """The diagnostics of one sample as JSON can hold them; never raises.

    A number that is not finite becomes null. In place of a value that contains itself, is too large (`MOST`), or cannot
    be looked at, stands a text that says so.
    """
    budget, made = _Budget(MOST), {}
    try:
        items = list(said.items())
    except Exception as error:
        return {"diagnostics": f"(left out: {_name(error)} when they were read)"}
    for key, value in items:
        before = budget.left
        try:
            made[_text(str(key), budget)] = _finite(_plain(value, budget, 1))
        except BaseException as error:  # objects of others may raise anything when they are looked at
            budget.left = before
            why = str(error) if isinstance(error, TooMuch) else f"{_name(error)} when it was read"
            made[key if isinstance(key, str) and len(key) < 100 else "(a key)"] = f"(left out: {why})"
    return made


def _name(error: BaseException) -> str:
    return type(error).__name__


def _finite(value: Any) -> Any:
    """Plain values, null where JSON has no word for a number."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


def check_scores(scores: Scores, count: int) -> Scores:
    """The scores on the CPU, their diagnostics one plain mapping a sample. Raises ValueError unless there is one value
    and one mark per sample, and diagnostics for each or for none."""
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


def _diagnostics(said: Any, count: int) -> tuple[dict[str, Any], ...]:
    if said is None or (isinstance(said, Sequence) and not isinstance(said, str | bytes) and not len(said)):
        return tuple({} for _ in range(count))
    if not isinstance(said, Sequence) or isinstance(said, str | bytes):
        raise ValueError(f"returned diagnostics of type {type(said).__name__}, not one mapping per sample")
    if len(said) != count:
        raise ValueError(f"returned {len(said)} diagnostics for {count} samples")
    if not all(isinstance(one, Mapping) for one in said):
        raise ValueError("returned diagnostics that are no mappings")
    return tuple(plain_diagnostics(one) for one in said)


def joined(batches: Sequence[Scores]) -> Scores:
    """Scores of several batches, checked, as those of one."""
    return Scores(
        torch.cat([one.values for one in batches]),
        torch.cat([one.missing for one in batches]),
        tuple(said for one in batches for said in one.diagnostics),
    )


def valid_subscores(scores: Scores) -> tuple[Scores, str | None]:
    """Checked scores without invalid `subscores`, and what is wrong with the first of those; None if nothing is.

    Subscores are finite numbers under names (`dgpo_schemas.diagnostics`). Those under the key of older versions of the
    contract are reported, for they would be lost silently.
    """
    kept: list[Mapping[str, Any]] = []
    wrong: str | None = None
    for said in scores.diagnostics:
        if "subscores" not in said:
            wrong = wrong or _old_key(said)
            kept.append(said)
            continue
        reason = _why_no_subscores(said["subscores"])
        kept.append(said if reason is None else {key: value for key, value in said.items() if key != "subscores"})
        wrong = wrong or reason
    return (scores, None) if wrong is None else (Scores(scores.values, scores.missing, tuple(kept)), wrong)


def _old_key(said: Mapping[str, Any]) -> str | None:
    """The message for diagnostics with subscores under `parts`, their key before version 3 of the contract."""
    if isinstance(found := said.get(OLD_KEY), Mapping) and found and _why_no_subscores(found) is None:
        return (
            f"its diagnostics have subscores under {OLD_KEY!r}, which is called 'subscores' since version 3 of the "
            f"plugin contract ({GUIDE})"
        )
    return None


def _why_no_subscores(subscores: Any) -> str | None:
    if not isinstance(subscores, Mapping):
        return f"its `subscores` are {type(subscores).__name__}, not numbers under names"
    if len(subscores) > MOST_SUBSCORES:
        return f"it has {len(subscores)} `subscores`, more than {MOST_SUBSCORES}"
    for name, value in subscores.items():
        if re.fullmatch(SUBSCORE, name) is None:
            return f"the name {name[:100]!r} in its `subscores` is not of letters, digits, dots, dashes and underscores"
        if isinstance(value, bool) or not isinstance(value, int | float):  # what was not finite is null by now
            return f"the value of {name!r} in its `subscores` is no finite number"
        if abs(value) > LARGEST_SUBSCORE:
            return f"the value of {name!r} in its `subscores` is beyond {LARGEST_SUBSCORE:g}"
    return None


def subscore_values(diagnostics: Sequence[Mapping[str, Any]], values: Tensor) -> dict[str, Tensor]:
    """Each subscore that a reward names for N samples, in the order of the names: float64 [N], nan where a sample lacks
    it or has no value [N]. Of more than MOST_SUBSCORES names the first are kept, with a warning."""
    missing = values.isnan().tolist()
    names = sorted({name for said in diagnostics for name in said.get("subscores") or ()})
    if len(names) > MOST_SUBSCORES:
        log.warning(
            "a reward names %d different `subscores`, %s and so on: the first %d are kept",
            len(names),
            names[0],
            MOST_SUBSCORES,
        )
    return {
        name: torch.tensor(
            [
                math.nan if lost else float((said.get("subscores") or {}).get(name, math.nan))
                for said, lost in zip(diagnostics, missing, strict=True)
            ],
            dtype=torch.float64,
        )
        for name in names[:MOST_SUBSCORES]
    }
