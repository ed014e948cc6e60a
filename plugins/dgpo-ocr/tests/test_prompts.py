"""The prompt source is deterministic, has no word in both splits, and has targets that the reward finds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_kit.contracts import check_prompts
from dgpo_ocr.options import OcrPromptsOptions
from dgpo_ocr.prompts import HELDOUT_SHARE, OcrPrompts, Split, split_entries
from dgpo_ocr.target import quoted, target_of
from dgpo_ocr.words import SIGNS, TEMPLATES, WORDINGS, WORDS

SPLITS: tuple[Split, Split] = ("train", "heldout")


def source(**options: Any) -> OcrPrompts:
    return OcrPrompts(OcrPromptsOptions(**options))


def words_of(split: Split, **options: Any) -> set[str]:
    return {word for p in source(**options).prompts(split) for word in p.metadata["target"].lower().split()}


def test_the_contract() -> None:
    check_prompts(lambda: source(train_count=60, heldout_count=30))


def test_the_lists() -> None:
    entries = [*WORDS, *SIGNS]
    assert len(set(entries)) == len(entries) >= 400
    assert all(entry == entry.lower() and entry.replace(" ", "").isalpha() and entry.isascii() for entry in entries)
    assert all(template.count('"{}"') == 1 and template.count('"') == 2 for template in TEMPLATES)
    assert len(set(TEMPLATES)) == len(TEMPLATES) >= 12


@pytest.mark.parametrize("per_text", [1, 2, 4])
def test_targets_equal_the_quoted_texts(per_text: int) -> None:
    entries = set(WORDS) | set(SIGNS)
    for split in SPLITS:
        found = source(words_per_text=per_text).prompts(split)
        assert len(found) == {"train": 2000, "heldout": 400}[split]
        for prompt in found:
            assert quoted(prompt.text) == target_of(prompt) == prompt.metadata["target"]
        if per_text == 1:
            assert {p.metadata["target"].lower() for p in found} <= entries
        else:
            assert max(len(p.metadata["target"].split()) for p in found) >= per_text


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("count", [50, 3000])
def test_no_word_is_in_both_splits_for_any_seed_and_count(seed: int, count: int) -> None:
    options = {"seed": seed, "train_count": count, "heldout_count": count, "words_per_text": 3}
    train, heldout = words_of("train", **options), words_of("heldout", **options)
    assert not train & heldout
    fixed = split_entries([*WORDS, *SIGNS])
    assert train <= {word for entry in fixed["train"] for word in entry.split()}
    assert heldout <= {word for entry in fixed["heldout"] for word in entry.split()}


def test_a_fifth_of_the_words_is_held_out() -> None:
    fixed = split_entries([*WORDS, *SIGNS])
    share = {split: len({w for e in entries for w in e.split()}) for split, entries in fixed.items()}
    assert share["heldout"] / sum(share.values()) == pytest.approx(HELDOUT_SHARE, abs=0.02)
    assert any(" " in entry for entry in fixed["heldout"]), "including phrases"


def test_entries_that_share_a_word_stay_together() -> None:
    rng = Random(0)
    for _ in range(200):
        entries = [" ".join(rng.choices("abcdefghijklmnop", k=rng.randint(1, 2))) for _ in range(rng.randint(3, 12))]
        try:
            found = split_entries(entries)
        except ValueError:
            continue
        train, heldout = ({w for entry in found[split] for w in entry.split()} for split in SPLITS)
        assert train
        assert heldout
        assert not train & heldout
        assert sorted([*found["train"], *found["heldout"]]) == sorted(set(entries))
        shuffled = split_entries(rng.sample(entries, len(entries)))
        assert {s: set(e) for s, e in shuffled.items()} == {s: set(e) for s, e in found.items()}


def test_a_smaller_count_is_a_prefix_of_a_larger_one() -> None:
    few, many = source(train_count=30).prompts("train"), source(train_count=90).prompts("train")
    assert few == many[:30]
    assert few != source(train_count=30, seed=1).prompts("train")


def test_every_word_is_used_before_one_is_repeated() -> None:
    entries = split_entries([*WORDS, *SIGNS])["heldout"]
    found = source(words_per_text=1, heldout_count=len(entries) * 3).prompts("heldout")
    assert set(Counter(p.metadata["target"].lower() for p in found).values()) == {3}


def test_custom_words(tmp_path: Path) -> None:
    assert words_of("train", words=["one", "two"]) | words_of("heldout", words=["one", "two"]) == {"one", "two"}
    file = tmp_path / "words.txt"
    file.write_text("﻿Straße\n\n  no entry \r\nno exit\nÉté\n", encoding="utf-8")
    found = source(words=str(file)).entries
    assert sorted([*found["train"], *found["heldout"]]) == ["Straße", "no entry", "no exit", "Été"]
    assert ("no entry" in found["train"]) == ("no exit" in found["train"])


def test_capitalization() -> None:
    made = source(words=["baker's-shop", "éclair", "straße"], words_per_text=1)
    shown = {prompt.metadata["target"] for split in SPLITS for prompt in made.prompts(split)}
    assert shown == {
        "baker's-shop", "Baker's-shop", "BAKER'S-SHOP", "éclair", "Éclair", "ÉCLAIR", "straße", "Straße", "STRASSE"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "cannot be split"),
        (["one"], "cannot be split"),
        (["no entry", "no exit", "way exit"], "every entry shares a word"),
        (["One", "one"], "cannot be split"),
        (["one", " "], "entry 2 of `words` is empty"),
        (["one", 'say "hi"'], "entry 2 of `words`, 'say \"hi\"', contains a double quote"),
        (["one", "“hi”"], "contains a double quote"),
        (["one", "two\\"], "ends in a backslash"),
        (["one", "\u200b\u00ad"], "entry 2 of `words` is empty"),
        (["one", "two\ud83d"], "contains a lone surrogate"),
        (["caf\u00e9", "cafe\u0301", "ＣＡＦＥ\u0301"], "cannot be split"),
        (["it's", "it’s"], "cannot be split"),
        ("no/such/file", "no/such/file: cannot be read: No such file"),
    ],
)
def test_invalid_lists_are_reported(words: Any, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        source(words=words)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("prompts 'ocr': ")


def test_invalid_files_are_reported(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(b"one\n\xff\n")
    with pytest.raises(UserError, match=r"words.txt:2: not UTF-8 \(byte 1 of the line\)"):
        source(words=str(file))
    file.write_text('one\n\ntwo "three"\n')
    with pytest.raises(UserError, match=r"words.txt:3, 'two \"three\"', contains a double quote"):
        source(words=str(file))


def test_other_words_ask_for_the_same_text() -> None:
    source = OcrPrompts(OcrPromptsOptions(heldout_count=60))
    prompts = source.prompts("heldout")
    texts = source.reworded(prompts)
    assert {
        WORDINGS.index(text.replace(target_of(p), "{}")) for p, text in zip(prompts, texts, strict=True) if text
    } == {*range(len(WORDINGS))}
    for prompt, text in zip(prompts, texts, strict=True):
        assert text is not None
        assert target_of(Prompt(text)) == target_of(prompt)
    assert not set(WORDINGS) & set(TEMPLATES)
    assert source.reworded([Prompt("a sign"), Prompt("x", {"target": 'a "b" c'})]) == [None, None]
