"""Texts from outside: what is shown of them, and what is none."""

from __future__ import annotations

import subprocess

import pytest

from dgpo_schemas.text import LONGEST, clean, error_text, is_visible, lone_surrogate, shell_word


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain, ünïcode 漢字 🎨", "plain, ünïcode 漢字 🎨"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("right \u202e left", "right \\u202e left"),
        ("half \ud83d", "half \\ud83d"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_what_cannot_be_printed_is_escaped(given: str, shown: str) -> None:
    assert clean(given) == shown
    assert clean(given).isprintable()


def test_lines_are_kept_on_request_and_length_is_bounded() -> None:
    assert clean("a\nb\tc\r", lines=True) == "a\nb\tc\\r"
    assert clean("x" * 3000) == "x" * (LONGEST - 1) + "…"
    assert clean("x" * LONGEST) == "x" * LONGEST


def test_an_error_whose_text_cannot_be_had_is_named() -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise SystemExit(3)

    assert error_text(Nasty()) == "Nasty: (no message: __str__ raised SystemExit)"
    assert error_text(ValueError()) == "ValueError"
    assert error_text(ValueError("\x1b]0;title\x07")) == "ValueError: \\x1b]0;title\\x07"


def test_halves_of_characters_are_found() -> None:
    assert lone_surrogate("a circle \ud83d") == 9
    assert lone_surrogate("a circle \U0001f534") is None


@pytest.mark.parametrize(
    "text", ["", " \t\n", "\ufeff", "\u200b\u200d\u2060", "\x00", "\u3164\u2800", "\u00a0\u3000", "\ufe0f"]
)
def test_nothing_to_see(text: str) -> None:
    assert not is_visible(text)


@pytest.mark.parametrize("text", ["a", ".", "漢", "\u200b.", "👩\u200d🎨", "◌\u0301", "\u0301"])
def test_something_to_see(text: str) -> None:
    assert is_visible(text)


@pytest.mark.parametrize("text", ["runs/a", "a b", "it's", "a\nb", "a'\n\\b", "é\x1b", "a\u200bb", "$x\t`y`"])
def test_a_word_of_a_command_line_is_one_line_and_read_back_by_the_shell(text: str) -> None:
    word = shell_word(text)
    assert "\n" not in word
    assert "\x1b" not in word
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout.decode() == text
