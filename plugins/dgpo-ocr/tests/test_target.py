"""The text that a prompt asks for."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
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
        ('a 12" vinyl record sleeve that says "OPEN"', "OPEN"),
        ('a 12" x 12" canvas that says "OPEN"', "OPEN"),
        ('a 12 " x 12 " canvas that says "OPEN"', "OPEN"),
        ('an 8½" by 11" sheet with "page 2" on it', "page 2"),
        ('a 27" screen that shows "24"', "24"),
        ('a sign that says "24" beside a 5\'10" man', "24"),
        ('A 5" sign that says “OPEN”', "OPEN"),
        ("a 12” record that says “OPEN”", "OPEN"),
        ("A sign that says “OPEN”", "OPEN"),
        ("A sign “one” and “two”", "one"),
        ('A “nice” sign that says "OPEN"', "OPEN"),
        ('A sign that says " OPEN "', " OPEN "),
        ('a door with number 7 "OPEN" on it', "OPEN"),
        ('写着"营业"的招牌', "营业"),
        ("ein Schild, auf dem „OPEN“ steht", "OPEN"),
        ("„OPEN” po polsku", "OPEN"),
        ("une enseigne «\u00a0OPEN\u202f»", "OPEN"),
        ("et skilt med »OPEN«", "OPEN"),
        ("en skylt med »OPEN» eller ”SHUT”", "OPEN"),
        ("en skylt med ”OPEN”", "OPEN"),
        ("写着「OPEN」的招牌", "OPEN"),
        ("看板に『営業中』", "営業中"),
        ("＂OPEN＂ in full width", "OPEN"),
        ("“He said ‘OPEN’ ”", "He said ‘OPEN’"),
        ("a sign that says ❝OPEN❞", "OPEN"),
        ("看板に｢営業中｣", "営業中"),
        ("縦書きの﹁営業中﹂", "営業中"),
        ("縦書きの﹃営業中﹄", "営業中"),
        ("⹂OPEN” on a door", "OPEN"),
        ("l’enseigne d’un café «L’été»", "L’été"),
        ("„Sie sagt ‚Hallo‘“ auf einem Schild", "Sie sagt ‚Hallo‘"),
        ("一块写着「他说『你好』」的牌子", "他说『你好』"),
        ('a sign that says "He said “Hi”"', "He said “Hi”"),
        ('“A street with a sign that says "OPEN".”', "OPEN"),
        ('“nice” "OPEN" “late”', "OPEN"),
        ('a man of 5\'10" on a 12"-wide, 6\'2"x3\'4" (9") board that says "OPEN"', "OPEN"),
    ],
)
def test_the_first_pair_counts(text: str, target: str) -> None:
    assert quoted(text) == target
    assert target_of(Prompt(text)) == target


@pytest.mark.parametrize("text", ['A "b" c', '"b"', 'x "b" "c"', '""b""', '" " x'])
def test_paired_straight_quotes_equal_the_published_rule(text: str) -> None:
    assert quoted(text) == quoted(text, "flowgrpo") == text.split(MARK)[1]


def test_the_published_rule_splits_at_straight_quotes() -> None:
    rng = Random(0)
    refused = 0
    for _ in range(500):
        text = "".join(rng.choices('a1 "“”\\', k=rng.randint(0, 12)))
        if MARK in text:
            assert quoted(text, "flowgrpo") == text.split(MARK)[1], text
        else:
            refused += 1
            with pytest.raises(ValueError, match="no double quote, which the rule 'flowgrpo' requires"):
                quoted(text, "flowgrpo")
    assert refused > 20


def test_words_between_two_texts_are_never_the_target() -> None:
    """With any inch marks, the target is the text, or the prompt is refused."""
    rng = Random(0)
    for _ in range(500):
        inches = [f'{rng.choice(["7", "12", "8½", "3.5"])}{rng.choice(["", " "])}"' for _ in range(rng.randint(0, 3))]
        text = f"a {' by '.join(inches)}{rng.choice([' ', ' record, ', ' sleeve with number 3 '])}"
        text += 'that says "OPEN"' + rng.choice(["", " in red", ', 7"', ' beside a 9" nail'])
        assert quoted(text) == "OPEN", text
        for lonely in (f'{text} and a lonely "', f'a lonely " mark, {text}'):
            with pytest.raises(ValueError, match="not in pairs"):
                quoted(lonely)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("A sign that says OPEN", 'no text in double quotes, as in: a sign that says "OPEN"'),
        ("A sign that says 'OPEN'", "no text in double quotes"),
        ('A sign that says "OPEN', "a double quote that is not closed"),
        ('A sign that says "OPEN', "the double quotes are not in pairs"),
        ('"one" and a lonely " mark', "the double quotes are not in pairs"),
        ('a lonely " mark and "one"', "the double quotes are not in pairs"),
        ('a "b" c "d', "the double quotes are not in pairs"),
        ('a sign that says "He said "Hi" loudly"', "has 'He said ' between two texts"),
        ('a menu that says "12" PIZZA" and a 5" card', "has ' and a 5' between two texts"),
        ('"a sign that says ""OPEN"""', "has 'a sign that says ' between two texts"),
        ('a 12"" sleeve that says "OPEN"', "has ' sleeve that says ' between two texts"),
        (
            'a sign that says “He said "Hi" loudly”',
            "has 'Hi' in quotes inside '“He said \"Hi\" loudly”'; set the metadata",
        ),
        ('une enseigne «a "b" c»', "has 'b' in quotes inside '«a \"b\" c»'"),
        ('a sign" that says "OPEN" in 5"', "has ' that says ' between two texts: the double quotes are not in pairs"),
        ('a lonely " mark, a 12" disc and "OPEN"', "has ' mark, a 12' between two texts"),
        ('a lonely " mark and "OPEN" on a 5" sign', "has ' mark and ' between two texts"),
        ('a sign that says "SIZE 12" SHOES"', "the double quotes are not in pairs"),
        ('a sign that says "OPEN”', "the double quotes are not in pairs"),
        ('ein Schild mit „OPEN"', "the double quotes are not in pairs"),
        ("a lonely “ mark and “OPEN”", "a “ without a closing ”: the double quotes are not in pairs"),
        ("a lonely ” mark and “OPEN”", "the double quotes are not in pairs"),
        ("a lonely ” mark and ”OPEN”", "the double quotes are not in pairs"),
        ("«OPEN", "a « without a closing »"),
        ("„OPEN", "a „ without a closing “ or ”"),
        ('a 12" record', "no text in double quotes"),
        ("a storefront with 'OPEN' on it", "; the single quotes of 'OPEN' do not count"),
        ("the baker's sign that says ‘GO ON’", "; the single quotes of ‘GO ON’ do not count"),
        ("ein Schild mit ›OPEN‹", "; the single quotes of ›OPEN‹ do not count"),
        ("une enseigne ‹OPEN›", "; the single quotes of ‹OPEN› do not count"),
        ("ein Schild mit ‚OPEN‘", "; the single quotes of ‚OPEN‘ do not count"),
        ("en skylt med ’OPEN’", "; the single quotes of ’OPEN’ do not count"),
        ("a sign ＇OPEN＇", "; the single quotes of ＇OPEN＇ do not count"),
        ("a sign that says `OPEN`", "; the marks of '`OPEN`' do not count"),
        ("a sign that says ''OPEN''", "; the marks of \"''OPEN''\" do not count"),
        ("a sign that says ``OPEN''", "OPEN''\" do not count"),
        ("a sign that says &quot;OPEN&quot;", "; the marks of '&quot;OPEN&quot;' do not count"),
        ("写着《营业》的招牌", "; the marks of '《营业》' do not count"),
        ("a sign that says <<OPEN>>", "; the marks of '<<OPEN>>' do not count"),
        ("写着营业」的招牌", "; 」 has no opening quote"),
        ("the baker's sign and the smith's sign", '(double quotes are "…", “…”, „…“, «…», »…«'),
        ("写着「他说「你好」」的牌子", "a 「 without a closing 」"),
        ("A sign that says “OPEN", "a “ without a closing ”"),
        ("A sign that says ”OPEN“", "a “ without a closing ”"),
        (r"A sign that says \"OPEN\"", "a backslash before a double quote"),
        ('A sign that says ""', "no text in its quotes"),
        ('A sign that says " \t "', "no text in its quotes"),
        ('A sign that says "\u200b\u00ad\u00a0"', "no text in its quotes"),
        ('A sign that says "OPEN\ud83d"', "a lone surrogate, which is not valid Unicode, in its quotes"),
    ],
)
def test_errors_are_reported(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        check_target(Prompt(text))
    assert complaint in str(caught.value)
    assert repr(text) in str(caught.value)


def test_metadata_have_precedence() -> None:
    assert target_of(Prompt('A "vintage" poster', {"target": "Casablanca"})) == "Casablanca"
    assert target_of(Prompt("no quotes at all", {"target": "x"})) == "x"
    for absent in (None, float("nan")):  # as tables fill a column
        assert target_of(Prompt('A "vintage" poster', {"target": absent})) == "vintage"
    for wrong in ("", "  ", 3, 2024.0, ["OPEN"]):
        with pytest.raises(UserError, match="metadata key `target`"):
            check_target(Prompt('A sign that says "OPEN"', {"target": wrong}))


def test_escaped_quotes_in_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a sign \\"OPEN\\""}\n{"prompt": "a sign", "target": "say \\"hi\\""}\n')
    assert [target_of(prompt) for prompt in load_file(file)] == ["OPEN", 'say "hi"']


def test_the_published_rule_uses_only_quotes() -> None:
    sign = 'A sign that says "OPEN"'
    assert target_of(Prompt(sign, {"target": "OPEN"}), "flowgrpo") == "OPEN"
    assert target_of(Prompt('A sign that says "\t"'), "flowgrpo") == "\t", "no space, U+0020"
    assert target_of(Prompt('A sign that says "OPEN'), "flowgrpo") == "OPEN"
    for prompt, complaint in (
        (Prompt(sign, {"target": "open"}), "'open' under the metadata key `target` and 'OPEN' in its quotes"),
        (Prompt("A sign", {"target": "OPEN"}), "no double quote"),
        (Prompt('A sign that says "  "'), "no text in its quotes"),
    ):
        with pytest.raises(UserError) as caught:
            check_target(prompt, "flowgrpo")
        assert complaint in str(caught.value)


def test_messages_stay_short() -> None:
    with pytest.raises(UserError, match=r"\(100000 characters\) has no text in double quotes") as caught:
        check_target(Prompt("x" * 100_000))
    assert len(str(caught.value)) < 500


def test_all_published_test_prompts_have_a_target(test_data: Path) -> None:
    prompts = load_file(test_data / "prompts" / "flow_grpo_ocr_test.txt")
    assert len(prompts) == 1018
    for prompt in prompts:
        assert target_of(prompt) == target_of(prompt, "flowgrpo") == prompt.text.split(MARK)[1]
