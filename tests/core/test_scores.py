"""Diagnostics as JSON can hold them, whatever a reward puts into them; scores that are none."""

from __future__ import annotations

import datetime
import enum
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from dgpo_core.training.scores import MOST, TooMuch, check_scores, plain, plain_diagnostics
from dgpo_core.types import Scores


class Color(enum.Enum):
    RED = 1


class Mute:
    """Nothing can be had of it."""

    def __str__(self) -> str:
        raise SystemExit(0)


class Trap:
    """Raises when it is asked whether it is an array."""

    @property
    def tolist(self) -> Any:
        raise KeyboardInterrupt


class Torn(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("torn")


def cycle() -> dict[str, Any]:
    found: dict[str, Any] = {"a": 1}
    found["self"] = [found, found]
    return found


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        ({"b", "a"}, ["a", "b"]),
        (frozenset({3, 1}), [1, 3]),
        (b"\x00ab", "b'\\x00ab'"),
        ((1, (2, None)), [1, [2, None]]),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor(0.5), 0.5),
        (torch.float16, "torch.float16"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (Color.RED, "Color.RED"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        ({1: "x", None: 2, float("nan"): 3}, {"1": "x", "None": 2, "nan": 3}),
        (float("nan"), None),
        ([float("inf"), {"x": -float("inf")}], [None, {"x": None}]),
        ("\ud83d!", "\\ud83d!"),
        ({"\ud83d": 1}, {"\\ud83d": 1}),
        (10**400, "an integer of 1329 bits"),
        (range(3), "range(0, 3)"),
        (cycle(), "(left out: more than 64 levels of lists and mappings, or a value that contains itself)"),
        (deep(100), "(left out: more than 64 levels of lists and mappings, or a value that contains itself)"),
        ("x" * (MOST + 1), f"(left out: more than {MOST} values and characters)"),
        (b"x" * (MOST + 1), f"(left out: more than {MOST} values and characters)"),
        (torch.zeros(1).expand(10**12), f"(left out: more than {MOST} values and characters)"),
        ([0] * (MOST + 1), f"(left out: more than {MOST} values and characters)"),
        (Mute(), "(left out: SystemExit when it was read)"),
        ({Mute(): 1}, "(left out: SystemExit when it was read)"),
        (Trap(), "(left out: KeyboardInterrupt when it was read)"),
        (Torn(a=1), "(left out: RuntimeError when it was read)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_word_for(value: Any, expected: Any) -> None:
    found = plain_diagnostics({"reason": "dark", "value": value, "last": 1})
    assert found == {"reason": "dark", "value": expected, "last": 1}, "the others stay"
    assert json.loads(json.dumps(found, allow_nan=False, ensure_ascii=False).encode()) == found


def test_a_value_that_branches_into_itself_does_not_take_for_ever() -> None:
    assert "contains itself" in plain_diagnostics({"value": cycle()})["value"]


def test_keys_that_are_no_texts_and_mappings_that_cannot_be_read() -> None:
    assert plain_diagnostics({1: "a", (2, 3): "b", Color.RED: "c"}) == {"1": "a", "(2, 3)": "b", "Color.RED": "c"}  # type: ignore[dict-item]
    assert plain_diagnostics({Mute(): "a", "b": 1}) == {"(a key)": "(left out: SystemExit when it was read)", "b": 1}  # type: ignore[dict-item]
    assert plain_diagnostics(Torn(a=1)) == {"diagnostics": "(left out: RuntimeError when they were read)"}


def test_metadata_of_any_size_may_travel_but_not_what_has_no_end() -> None:
    assert plain([0] * (2 * MOST)) == [0] * (2 * MOST)
    with pytest.raises(TooMuch, match="a value that contains itself"):
        plain(cycle())


SOUND = (torch.tensor([0.5, 1.0]), torch.tensor([False, True]))


@pytest.mark.parametrize("diagnostics", [[{"a": 1}, {"a": 2}], ({"a": 1}, {"a": 2})])
def test_diagnostics_may_be_any_sequence(diagnostics: Any) -> None:
    found = check_scores(Scores(*SOUND, diagnostics), 2)
    assert found.diagnostics == ({"a": 1}, {"a": 2})


@pytest.mark.parametrize("diagnostics", [(), [], None])
def test_none_are_one_empty_mapping_each(diagnostics: Any) -> None:
    assert check_scores(Scores(*SOUND, diagnostics), 2).diagnostics == ({}, {})


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([0.5, 1.0], "returned list, not Scores"),
        (Scores([0.5, 1.0], SOUND[1]), "returned values of type list, not a tensor"),  # type: ignore[arg-type]
        (Scores(SOUND[0], [False, True]), "returned missing of type list, not a tensor"),  # type: ignore[arg-type]
        (Scores(SOUND[0].to(torch.complex64), SOUND[1]), "returned values of torch.complex64, not real numbers"),
        (Scores(SOUND[0], SOUND[0]), "returned a missing mask of torch.float32, not torch.bool"),
        (Scores(*SOUND, {"a": 1}), "returned diagnostics of type dict, not one mapping per sample"),  # type: ignore[arg-type]
        (Scores(*SOUND, "ab"), "returned diagnostics of type str, not one mapping per sample"),  # type: ignore[arg-type]
        (Scores(*SOUND, ({}, None)), "returned diagnostics that are not mappings"),  # type: ignore[arg-type]
    ],
)
def test_what_are_no_scores(scores: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_scores(scores, 2)


def test_mappings_need_not_be_dictionaries() -> None:
    class ModelName(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return {"a": 1}[key]

        def __iter__(self) -> Any:
            return iter(["a"])

        def __len__(self) -> int:
            return 1

    assert check_scores(Scores(*SOUND, (ModelName(), ModelName())), 2).diagnostics == ({"a": 1}, {"a": 1})
