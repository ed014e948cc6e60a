"""Text normalization: texts that look alike become equal, others stay different."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from dgpo_ocr.normal import fold, squeeze


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CAFÉ", "cafe\u0301"),
        ("ＯＰＥＮ　２４", "open 24"),
        ("no\u00a0break\u202fspace", "no break space"),
        ("zero\u200bwidth\u2060 \ufeffjoiner\u200d", "zerowidth joiner"),
        ("so\u00adft", "soft"),
        ("left\u200eto\u202aright", "lefttoright"),
        ("heart❤\ufe0f", "heart❤"),
        ("It’s “GO”", 'it\'s "go"'),
        ("«GO» ‹now› „then“ ‚so‘", "\"go\" 'now' \"then\" 'so'"),
        ("5′ 10″", "5' 10\""),
        ("rock`n´roll", "rock'n'roll"),
        ("1914–1918 — a non‑breaking‐hyphen−minus", "1914-1918 - a non-breaking-hyphen-minus"),
        ("13½ E=mc² O₂", "131/2 e=mc2 o2"),
        ("wait…", "wait..."),
        ("ﬁne ﬂow", "fine flow"),
        ("Straße", "STRASSE"),
        ("ΟΔΟΣ", "οδος"),
        ("İstanbul KIRMIZI", "istanbul kırmızı"),
        ("ﾃﾞﾊﾟｰﾄ", "デパート"),
        ("10～20 〜", "10~20 ~"),
        ("™", "tm"),
    ],
)
def test_texts_that_look_alike_are_equal(one: str, other: str) -> None:
    assert fold(one) == fold(other)
    assert squeeze(one) == squeeze(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("é", "e"), ("ñ", "n"), ("一", "-"), ("ー", "-"), ("。", "."), ("0", "o"), ("l", "1"), ("б", "6")],
)
def test_texts_that_look_different_are_different(one: str, other: str) -> None:
    assert squeeze(one) != squeeze(other)


def test_squeeze_removes_white_space_and_fold_keeps_it() -> None:
    assert fold("Grand  Opening\n\tToday") == "grand  opening\n\ttoday"
    assert squeeze("Grand  Opening\n\tTo\u2009day\u3000\u2800") == "grandopeningtoday"


def test_two_apostrophes_become_a_double_quote() -> None:
    assert squeeze("5' 10''") == squeeze("5’10”") == squeeze("5′10′′") == "5'10\""
    assert squeeze("rock 'n' roll") == "rock'n'roll"
    assert squeeze(squeeze("'''  ''")) == squeeze("'''  ''")


def test_fold_is_idempotent() -> None:
    characters = [chr(code) for code in (*range(0x3100), *range(0xF900, 0x10000), *range(0x1D400, 0x1D7FF))]
    for character in characters:
        if not "\ud800" <= character <= "\udfff":
            assert fold(fold(character)) == fold(character), hex(ord(character))


def test_ascii_is_only_lower_cased() -> None:
    text = "".join(map(chr, range(128)))
    assert fold(text) == text.lower().replace("`", "'")


def test_invisible_characters_are_unicodes_list() -> None:
    """All format characters except those that scripts draw; Default_Ignorable_Code_Point has the others."""
    drawn = {0x110BD, 0x110CD, 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, *range(0x600, 0x606), *range(0x13430, 0x13440),
             *range(0xFFF9, 0xFFFC)}  # fmt: skip
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Cf":
            assert (squeeze(chr(code)) == "") != (code in drawn), hex(code)
