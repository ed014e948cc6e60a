"""Only targets with characters that the engine cannot recognize are refused before a run."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch

from dgpo_core.data.checks import check_prompts
from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_ocr.alphabet import check_readable, readable
from dgpo_ocr.engine import Line
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.reward import OcrReward

ASCII = readable(string.printable)


class Ascii:
    """An engine that recognizes ASCII."""

    def read(self, image: object) -> list[Line]:
        return []

    def alphabet(self) -> frozenset[str] | None:
        return frozenset(string.printable)


def reward(**options: object) -> OcrReward:
    return OcrReward(OcrOptions.model_validate(options), device=torch.device("cpu"), make=Ascii)


@pytest.mark.parametrize(
    "target",
    ["OPEN", "It’s “GO” – now…", "13½", "ＯＰＥＮ", "x\u200by\u00a0z", "ﬁne", "E=mc²", "Strasse", "İ", "?!", "ſ"],
)
def test_characters_that_normalize_are_accepted(target: str) -> None:
    check_readable(target, ASCII, "the engine")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("Жук", r"'Ж' \(U\+0416, CYRILLIC CAPITAL LETTER ZHE\), .* cyrillic_PP-OCRv5_mobile_rec is for Cyrillic"),
        ("café", r"'é' \(U\+00E9, .* latin_PP-OCRv5_mobile_rec is for Latin"),
        ("cafe\u0301", r"'é' \(U\+00E9"),
        ("한글", r"'한' .* korean_PP-OCRv5_mobile_rec is for Hangul"),
        ("😀", r"'😀' \(U\+1F600, GRINNING FACE\), which the engine cannot read$"),
        ("a\x07b", r"'\\x07' \(U\+0007\), which the engine cannot read$"),
        ("αβγδε", r"'α' .*'β' .*'γ' .*and 2 more, which"),
        ("b\u0323", r"'ḅ' \(U\+1E05"),
        ("q\u0323", r"\(U\+0323, COMBINING DOT BELOW\)"),
        ("ｶﾞ", r"'ｶ'"),
    ],
)
def test_unreadable_characters_are_named(target: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_readable(target, ASCII, "the engine")


def test_characters_that_compose_to_one_are_named() -> None:
    with pytest.raises(ValueError, match="'ガ' "):
        check_readable("ｶﾞ", readable("ｶﾞ"), "the engine")


def test_check_prompts_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "signs.jsonl"
    file.write_text('{"prompt": "a sign \\"OPEN\\""}\n\n{"prompt": "a sign", "target": "Открыто"}\n', encoding="utf-8")
    made = reward()
    with pytest.raises(UserError) as caught:
        check_prompts(made, load_file(file))
    made.close()
    assert str(caught.value).startswith(f"{file}:3: reward 'ocr': prompt 'a sign' asks for 'О' (U+041E, CYRILLIC")
    assert "which engine 'rapidocr' with its model cannot read" in str(caught.value)


def test_the_published_rule_refuses_no_characters() -> None:
    made = reward(rule="flowgrpo")
    made.check_prompts([Prompt('a sign "Открыто 😀"')])
    made.close()


def test_an_unknown_alphabet_refuses_nothing() -> None:
    class Silent(Ascii):
        def alphabet(self) -> None:
            return None

    class Older:
        def read(self, image: object) -> list[Line]:
            return []

    for make in (Silent, Older):
        made = OcrReward(OcrOptions(), device=torch.device("cpu"), make=make)
        made.check_prompts([Prompt('a sign "Открыто"')])
        made.close()
