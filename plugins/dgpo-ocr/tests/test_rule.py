"""The rule against an independent transcription and a brute-force edit distance."""

from __future__ import annotations

from random import Random

import pytest

from dgpo_ocr.rule import judge, over_frames, plain

ALPHABETS = ("ab", "abc ", "AaBb .!", "0O1lI|", "éÉßñ漢字 İ", "a😀👩‍🚀\u0301 ")


def edit_distance(a: str, b: str) -> int:
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def published(read: str, target: str, *, substring_is_free: bool = True) -> float:
    """The reward as its description reads, step by step."""
    read = read.replace(" ", "").lower()
    target = target.replace(" ", "").lower()
    edits = edit_distance(read, target)
    if substring_is_free and read.find(target) >= 0:
        edits = 0
    if edits > len(target):
        edits = len(target)
    return 1 - edits / len(target)


def random_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """(read, target): unrelated, empty, damaged or surrounded by more."""
    rng = Random(seed)
    pairs = []
    while len(pairs) < count:
        letters = rng.choice(ALPHABETS)

        def word(low: int, high: int, letters: str = letters) -> str:
            return "".join(rng.choice(letters) for _ in range(rng.randint(low, high)))

        target = word(1, 10)
        if not target.strip(" "):
            continue
        match rng.randrange(5):
            case 0:
                read = word(0, 12)
            case 1:
                read = ""
            case 2:
                read = word(0, 6) + target + word(0, 6)
            case 3:
                place = rng.randrange(len(target))
                read = target[:place] + word(0, 2) + target[place + 1 :]
            case _:
                read = target.swapcase()
        pairs.append((read, target))
    return pairs


def test_the_edit_distance_of_the_tests_is_one() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("flaw", "lawn") == 2


def test_the_rule_is_the_published_one() -> None:
    pairs = random_pairs(10_000, seed=0)
    for read, target in pairs:
        free, strict = judge(read, target), judge(read, target, strict=True)
        assert free.value == published(read, target), (read, target)
        assert strict.value == published(read, target, substring_is_free=False), (read, target)
        assert 0 <= strict.value <= free.value <= 1
        assert free.surplus == strict.surplus == max(0, len(plain(read)) - len(plain(target)))
        assert free.value == 1 - free.distance / len(plain(target))
    values = {judge(read, target).value for read, target in pairs}
    assert {0.0, 1.0} < values, "the pairs are worth trying"


@pytest.mark.parametrize(
    ("read", "target", "value", "strict", "surplus"),
    [
        ("OPEN", "open", 1, 1, 0),
        ("grand opening", "GrandOpening", 1, 1, 0),
        ("Gr and\nOpen ing", "Grand Opening", 1, 1, 0),
        ("OPEN DAILY", "OPEN", 1, 0, 5),
        ("OPENS", "OPEN", 1, 0.75, 1),
        ("OPER", "OPEN", 0.75, 0.75, 0),
        ("", "OPEN", 0, 0, 0),
        ("nothing like it at all", "OPEN", 0, 0, 14),
        ("漢字", "漢", 1, 0, 1),
    ],
)
def test_by_hand(read: str, target: str, value: float, strict: float, surplus: int) -> None:
    assert (judge(read, target).value, judge(read, target).surplus) == (value, surplus)
    assert (judge(read, target, strict=True).value, judge(read, target, strict=True).surplus) == (strict, surplus)


def test_an_empty_target_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        judge("anything", " \t")


@pytest.mark.parametrize(
    ("values", "mean", "flowgrpo"),
    [([1.0], 1, 1), ([0.0, 1.0], 0.5, 1), ([0.0, 0.5, 1.0, 0.0], 0.375, 0.75), ([0.0, 0.0], 0, 0)],
)
def test_videos(values: list[float], mean: float, flowgrpo: float) -> None:
    assert over_frames(values, "mean") == mean
    assert over_frames(values, "flowgrpo") == flowgrpo


@pytest.mark.parametrize("rule", ["mean", "flowgrpo"])
def test_no_frames_are_no_zero(rule: str) -> None:
    with pytest.raises(ValueError, match="no frames"):
        over_frames([], rule)  # type: ignore[arg-type]
