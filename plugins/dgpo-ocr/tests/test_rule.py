"""The rules, compared with an independent implementation of the published code and a brute-force edit distance."""

from __future__ import annotations

from random import Random

import pytest
import torch

from dgpo_core.types import Prompt
from dgpo_ocr.engine import Line
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.reward import OcrReward
from dgpo_ocr.rule import Rule, judge, over_frames, plain

RULES: tuple[Rule, Rule] = ("normalized", "flowgrpo")
ALPHABETS = ("ab", "abc ", "AaBb .!", "0O1lI|", "éÉßñ漢字 İ", "a😀👩‍🚀\u0301 ", "Aa\t \u00a0’'ﬁ")


def edit_distance(a: str, b: str) -> int:
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


Reading = list[tuple[str, float]]
"""Lines of an image as an engine returns them: (text, confidence)."""


def flow_grpo(reading: Reading | None, prompt: str, *, substring_is_free: bool = True) -> float:
    """Independent implementation of the reward of `flow_grpo/ocr.py` in the code of Flow-GRPO (arXiv 2505.05470) and of
    DGPO's authors (arXiv 2510.08425): `OcrScorer` for an image, or `OcrScorer_video_or_image` for a frame, which does
    not exempt a target within more text. None stands for an engine that raises."""
    target = prompt.split('"')[1]
    wanted = "".join(character for character in target if character != "\u0020").lower()
    if reading is None:
        return 0.0
    text = ""
    for line, confidence in reading:
        if confidence > 0:
            text += line
    text = "".join(character for character in text if character != "\u0020").lower()
    edits = edit_distance(text, wanted)
    if substring_is_free and any(text[at : at + len(wanted)] == wanted for at in range(len(text) - len(wanted) + 1)):
        edits = 0
    if edits > len(wanted):
        edits = len(wanted)
    return 1 - edits / len(wanted)


def random_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs (read, target): unrelated, empty, damaged, or surrounded by more text."""
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


def test_the_brute_force_edit_distance() -> None:
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("flaw", "lawn") == 2


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_is_an_edit_distance_of_plain_texts(rule: Rule) -> None:
    pairs = random_pairs(4000, seed=0)
    values = set()
    for read, target in pairs:
        r, t = plain(read, rule), plain(target, rule)
        if not t:
            continue
        edits = min(edit_distance(r, t), len(t))
        free, strict = judge(read, target, rule=rule), judge(read, target, strict=True, rule=rule)
        assert (free.distance, strict.distance) == (0 if t in r else edits, edits), (read, target)
        assert (free.value, strict.value) == (1 - free.distance / len(t), 1 - edits / len(t))
        assert free.surplus == strict.surplus == max(0, len(r) - len(t))
        values.add(free.value)
    assert {0.0, 1.0} < values, "the pairs cover both extremes"


def test_flowgrpo_is_the_rule_of_the_code() -> None:
    for read, target in random_pairs(4000, seed=1):
        assert judge(read, target, rule="flowgrpo").value == flow_grpo([(read, 1.0)], f'"{target}"'), (read, target)
        strict = judge(read, target, rule="flowgrpo", strict=True).value
        assert strict == flow_grpo([(read, 1.0)], f'"{target}"', substring_is_free=False), (read, target)


@pytest.mark.parametrize("media", ["image", "video"])
def test_rule_flowgrpo_scores_what_the_code_of_flow_grpo_and_dgpo_scores(media: str) -> None:
    """The whole reward, from an engine's lines to values: first quotes, confidence, order, spaces, case, maximum
    distance, engines that raise, frames of a video."""
    rng = Random(2)
    pages = [random_page(rng) for _ in range(400)]
    frames = [rng.randint(1, 3) if media == "video" else 1 for _ in pages]
    readings = [
        page[1] if n == 0 else random_page(rng)[1]
        for page, count in zip(pages, frames, strict=True)
        for n in range(count)
    ]
    reward = OcrReward(OcrOptions(rule="flowgrpo", readers=1), device=torch.device("cpu"), make=lambda: Pages(readings))
    taken = 0
    values = set()
    for (prompt, _), count in zip(pages, frames, strict=True):
        reward.check_prompts([Prompt(prompt)])
        shown = readings[taken : taken + count]
        image = torch.zeros(1, 3, 8, 8)
        if media == "video":  # every fourth frame is read
            image = torch.zeros(1, 4 * count - rng.randint(0, 3), 3, 8, 8)
            worth = [flow_grpo(one, prompt, substring_is_free=False) for one in shown]
            good = [value for value in worth if value > 0]
            expected = sum(good) / len(good) if good else 0.0
        else:
            expected = flow_grpo(shown[0], prompt)
        scores = reward.score(image, [Prompt(prompt)])
        assert scores.values.tolist() == torch.tensor([expected]).tolist(), (prompt, shown)
        assert not scores.missing.any()
        values.add(expected)
        taken += count
    reward.close()
    assert taken == len(readings)
    assert {0.0, 1.0} < values


class Pages:
    """An engine that returns one reading after another, each from bottom to top."""

    def __init__(self, readings: list[Reading | None]) -> None:
        self.readings = iter(readings)

    def read(self, image: object) -> list[Line]:
        reading = next(self.readings)
        if reading is None:
            raise RuntimeError("no text")
        lines = len(reading)
        corner = [(0.0, 20.0 * (lines - n)) for n in range(lines)]
        return [
            Line(text, score, ((x, y), (x + 90, y), (x + 90, y + 9), (x, y + 9)))
            for (text, score), (x, y) in zip(reading, corner, strict=True)
        ]


def random_page(rng: Random) -> tuple[str, Reading | None]:
    """A prompt with all kinds of marks, and the lines that an engine reads."""
    while True:
        read, target = random_pairs(1, rng.randrange(10**9))[0]
        target += rng.choice(["", "", "\t", "\u00a0", "“"])
        prompt = rng.choice(['a sign "{}"', 'a sign "{}" and "more"', 'a sign "{}', '12" of "{}"', '“a” "{}"']).format(
            target
        )
        if prompt.split('"')[1].replace(" ", ""):
            break
    if rng.random() < 0.05:
        return prompt, None
    cuts = sorted(rng.sample(range(len(read) + 1), min(len(read), rng.randint(0, 2))))
    pieces = [read[a:b] for a, b in zip([0, *cuts], [*cuts, len(read)], strict=True)]
    return prompt, [(piece, rng.choice([0.99, 0.7, 0.3, 1e-6, 0.0])) for piece in pieces]


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
def test_known_values(read: str, target: str, value: float, strict: float, surplus: int) -> None:
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
def test_a_video_without_frames_is_an_error(rule: str) -> None:
    with pytest.raises(ValueError, match="no frames"):
        over_frames([], rule)  # type: ignore[arg-type]
