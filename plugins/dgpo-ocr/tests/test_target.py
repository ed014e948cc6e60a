"""The text that a prompt asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgpo_core.errors import UserError
from dgpo_core.prompts import load_file
from dgpo_core.types import Prompt
from dgpo_ocr.target import check_target, quoted, target_of

MARK = '"'


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ('A sign that says "OPEN"', "OPEN"),
        ('A sign "Grand Opening" over a door with "PUSH" on it', "Grand Opening"),
        ('"漢字 é 😀" on a wall', "漢字 é 😀"),
        ('A sign that says "It\'s open"', "It's open"),
        ('"one" and a lonely " mark', "one"),
        ("A sign that says “OPEN”", "OPEN"),
        ("A sign “one” and “two”", "one"),
        ('A “nice” sign that says "OPEN"', "OPEN"),
        ('A sign that says " OPEN "', " OPEN "),
    ],
)
def test_the_first_pair_counts(text: str, target: str) -> None:
    assert quoted(text) == target
    assert target_of(Prompt(text)) == target


@pytest.mark.parametrize("text", ['A "b" c', '"b"', 'x "b" "c"', 'a "b" c "d', '""b""', '" " x'])
def test_straight_quotes_are_the_published_rule(text: str) -> None:
    assert quoted(text) == text.split(MARK)[1]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("A sign that says OPEN", 'no text in double quotes, as in: a sign that says "OPEN"'),
        ("A sign that says 'OPEN'", "no text in double quotes"),
        ('A sign that says "OPEN', "a double quote that is not closed"),
        ('A 5" sign that says “OPEN”', "a double quote that is not closed"),
        ("A sign that says “OPEN", "a “ that no ” closes"),
        ("A sign that says ”OPEN“", "a “ that no ” closes"),
        (r"A sign that says \"OPEN\"", "a backslash before a double quote"),
        ('A sign that says ""', "no text in its quotes"),
        ('A sign that says " \t "', "no text in its quotes"),
    ],
)
def test_faults_are_named(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        check_target(Prompt(text))
    assert complaint in str(caught.value)
    assert repr(text) in str(caught.value)


def test_metadata_go_first() -> None:
    assert target_of(Prompt('A "vintage" poster', {"target": "Casablanca"})) == "Casablanca"
    assert target_of(Prompt("no quotes at all", {"target": "x"})) == "x"
    for wrong in ("", "  ", 3, None, ["OPEN"]):
        with pytest.raises(UserError, match="metadata key `target`"):
            check_target(Prompt('A sign that says "OPEN"', {"target": wrong}))


def test_what_json_lines_escape(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a sign \\"OPEN\\""}\n{"prompt": "a sign", "target": "say \\"hi\\""}\n')
    assert [target_of(prompt) for prompt in load_file(file)] == ["OPEN", 'say "hi"']
