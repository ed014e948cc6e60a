"""The reading order of lines, on generated layouts with a known order."""

from __future__ import annotations

import math
from random import Random

import pytest

from dgpo_ocr.engine import Line
from dgpo_ocr.order import readings

Box = tuple[float, float, float, float]


def line(text: str, box: Box, degrees: float = 0.0) -> Line:
    """A line with the box x0, y0, x1, y1, rotated about the origin, clockwise on the screen."""
    x0, y0, x1, y1 = box
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return Line(text, 0.9, tuple((x * cos - y * sin, x * sin + y * cos) for x, y in corners))


def read(lines: list[Line]) -> list[str]:
    """Return every reading as one text, and check that the order of the input does not matter."""
    found = [" ".join(line.text for line in reading) for reading in readings(lines)]
    for seed in range(3):
        shuffled = Random(seed).sample(lines, len(lines))
        assert [" ".join(line.text for line in reading) for reading in readings(shuffled)] == found
    return found


def layout(rng: Random, *, jitter: float, sizes: tuple[float, float], degrees: float) -> tuple[list[Line], list[str]]:
    """Rows of words from the upper left, and the words in order.

    The centers of words deviate from the row's by up to `jitter` times the row's smallest height.
    """
    lines: list[Line] = []
    y = rng.uniform(0, 50)
    for _ in range(rng.randint(1, 4)):
        heights = [rng.uniform(*sizes) for _ in range(rng.randint(1, 5))]
        shift = jitter * min(heights) / 2  # two words are at most `jitter` apart
        x, middle = rng.uniform(0, 200), y + max(heights) / 2 + shift
        for height in heights:
            width, level = height * rng.uniform(1, 6), middle + rng.uniform(-shift, shift)
            box = (x, level - height / 2, x + width, level + height / 2)
            lines.append(line(f"w{len(lines)}", box, degrees))
            x += width + height * rng.uniform(0.2, 0.9)
        y = middle + max(heights) / 2 + shift + rng.uniform(0, 20)
    return lines, [line.text for line in lines]


@pytest.mark.parametrize(
    ("jitter", "sizes", "degrees"),
    [(0, (30, 30), 0), (1 / 3, (30, 30), 0), (0.49, (30, 30), 0), (1 / 3, (24, 34), 0), (0.2, (30, 30), 8),
     (1 / 3, (30, 30), -15), (0, (30, 30), 30)],
)  # fmt: skip
def test_rows_of_words(jitter: float, sizes: tuple[float, float], degrees: float) -> None:
    for seed in range(200):
        lines, words = layout(Random(seed), jitter=jitter, sizes=sizes, degrees=degrees)
        assert read(lines)[0] == " ".join(words), seed


@pytest.mark.parametrize("rise", range(-38, 39))
def test_words_slightly_above_or_below_their_line(rise: int) -> None:
    lines = [line("HELLO", (20, 60, 270, 124)), line("WORLD", (560, 60 - rise, 820, 124 - rise))]
    assert read(lines) == ["HELLO WORLD"]


@pytest.mark.parametrize("rise", [40, 50, 57])
def test_a_word_half_a_letter_above_its_line_is_ambiguous(rise: int) -> None:
    lines = [line("HELLO", (20, 60, 270, 124)), line("WORLD", (560, 60 - rise, 820, 124 - rise))]
    assert read(lines) == ["WORLD HELLO", "HELLO WORLD"]


def test_noise_in_the_angle_of_a_box_does_not_rotate_the_text() -> None:
    """Boxes of an engine for two level words; rotated by the second's angle, the first would be 13 pixels lower."""
    hello = Line("HELLO", 0.9, ((54, 99), (155, 99), (155, 133), (54, 133)))
    world = Line("WORLD", 0.9, ((555, 80), (670, 83), (669, 117), (554, 114)))
    assert "HELLO WORLD" in read([hello, world])


@pytest.mark.parametrize("rise", [-70, -40, 58, 70])
def test_a_word_most_of_a_letter_above_is_a_separate_row(rise: int) -> None:
    lines = [line("HELLO", (20, 60, 270, 124)), line("WORLD", (560, 60 - rise, 820, 124 - rise))]
    assert read(lines) == ["WORLD HELLO" if rise > 0 else "HELLO WORLD"]


def test_rising_lines() -> None:
    """Each word is a third of a letter above the one before, so the last is more than a letter above the first."""
    lines = [line(f"a{n}", (100 * n, 300 - 10 * n, 100 * n + 80, 330 - 10 * n)) for n in range(5)]
    lines += [line(f"b{n}", (100 * n, 345 - 10 * n, 100 * n + 80, 375 - 10 * n)) for n in range(5)]
    assert read(lines)[0] == "a0 a1 a2 a3 a4 b0 b1 b2 b3 b4"


def test_lines_of_two_sizes() -> None:
    title, small = line("SALE", (10, 10, 400, 130)), line("today", (60, 120, 300, 150))
    assert read([small, title]) == ["SALE today"], "boxes of engines are larger than the letters and may overlap"
    assert read(
        [line("from", (10, 90, 60, 110)), line("99", (70, 20, 200, 120)), line("cents", (210, 85, 290, 112))]
    ) == ["from 99 cents"]


@pytest.mark.parametrize(
    ("tall", "expected"), [(0, "SALE half price"), (300, "half price SALE"), (150, "half price SALE to day")]
)
def test_a_tall_word_beside_two_lines(tall: float, expected: str) -> None:
    lines = [line("SALE", (tall, 100, tall + 120, 200)), line("half", (tall and 130, 100, tall and 140, 145))]
    if tall == 0:
        lines = [lines[0], line("half", (150, 100, 250, 145)), line("price", (150, 155, 250, 200))]
    elif tall == 300:
        lines = [lines[0], line("half", (10, 100, 110, 145)), line("price", (10, 155, 110, 200))]
    else:
        lines = [
            lines[0],
            line("half", (10, 100, 110, 145)),
            line("price", (10, 155, 110, 200)),
            line("to", (300, 100, 400, 145)),
            line("day", (300, 155, 400, 200)),
        ]
    assert read(lines)[0] == expected


def columns(rng: Random, *, aligned: bool) -> tuple[list[Line], str]:
    """Two or three columns of lines with gaps between them, under a title."""
    lines = [line("title", (0, 0, 1000, 40))]
    count = rng.randint(2, 3)
    for column in range(count):
        y = 80 + (0 if aligned else rng.uniform(0, 30))
        for row in range(3):
            box = (column * 300, y, column * 300 + rng.uniform(120, 220), y + 24)
            lines.append(line(f"c{column}r{row}", box))
            y += 40 if aligned else rng.uniform(30, 50)
    lines.append(line("end", (0, 300, 1000, 340)))
    return lines, " ".join(line.text for line in lines)


@pytest.mark.parametrize("aligned", [True, False])
def test_columns_can_be_read_by_rows_or_by_columns(aligned: bool) -> None:
    for seed in range(100):
        lines, by_columns = columns(Random(seed), aligned=aligned)
        assert read(lines)[-1] == by_columns, seed
        if aligned:
            width = (len(lines) - 2) // 3
            in_rows = [f"c{column}r{row}" for row in range(3) for column in range(width)]
            assert read(lines) == [" ".join(["title", *in_rows, "end"]), by_columns]


def test_a_title_above_the_gap_between_columns() -> None:
    lines = [line("title", (200, 0, 520, 60)), line("end", (250, 300, 500, 340))]
    lines += [
        line(f"c{x}r{y}", (600 * x, 100 + 70 * y, 600 * x + 90, 150 + 70 * y)) for x in range(2) for y in range(2)
    ]
    assert read(lines) == ["title c0r0 c1r0 c0r1 c1r1 end", "title c0r0 c0r1 c1r0 c1r1 end"]


def test_two_words_of_one_line_are_not_columns() -> None:
    lines = [line("HELLO", (0, 0, 200, 50)), line("WORLD", (900, 10, 1100, 60)), line("again", (100, 80, 1000, 120))]
    assert read(lines) == ["HELLO WORLD again"]


def test_every_line_is_in_every_reading() -> None:
    for seed in range(300):
        rng = Random(seed)
        lines = []
        for number in range(rng.randint(0, 12)):
            x, y = rng.uniform(0, 200), rng.uniform(0, 200)
            box = (x, y, x + rng.choice([0, 5, 80, 200]), y + rng.choice([0, 10, 30, 150]))
            lines.append(line(f"w{number}", box, rng.choice([0, 0, 5, 50, 90, 180])))
        for reading in readings(lines):
            assert sorted(line.text for line in reading) == sorted(line.text for line in lines)


def test_lines_in_one_place_or_without_position_keep_their_order() -> None:
    same = [Line(text, 0.9, ((0, 0), (10, 0), (10, 10), (0, 10))) for text in ("b", "a", "c")]
    assert readings(same) == [same]
    nowhere = [Line(text, 0.9, ()) for text in ("b", "a")]
    assert readings(nowhere) == [nowhere]
    assert readings([]) == [[]]
