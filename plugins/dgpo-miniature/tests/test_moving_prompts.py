"""The splits share neither texts nor contents, and the source passes its contract checks."""

from __future__ import annotations

from collections import Counter

from dgpo_kit.contracts import check_prompts
from dgpo_miniature.moving.prompts import MiniatureVideoPrompts, captions, prompts
from dgpo_miniature.options import MiniatureVideoPromptsOptions


def test_the_contract() -> None:
    check_prompts(lambda: MiniatureVideoPrompts(MiniatureVideoPromptsOptions()))


def test_splits() -> None:
    train, held = captions("train"), captions("heldout")
    assert (len(train), len(held)) == (36, 12)
    assert not {*train} & {*held}
    assert set(Counter(c.color for c in held).values()) == {3}
    assert set(Counter(c.direction for c in held).values()) == {3}
    assert set(Counter(c.shape for c in held).values()) == {4}


def test_every_text_occurs_once_before_one_repeats() -> None:
    for split, texts in (("train", 72), ("heldout", 24)):
        found = [prompt.text for prompt in prompts(split, 3 * texts)]
        assert set(Counter(found[:texts]).values()) == {1}
        assert set(Counter(found).values()) == {3}
        assert [prompt.text for prompt in prompts(split, 10)] == found[:10]
        assert [prompt.text for prompt in prompts(split, 10, seed=1)] != found[:10]


def test_metadata_matches_the_text() -> None:
    for prompt in [*prompts("train", 72), *prompts("heldout", 24)]:
        assert all(word in prompt.text.split() for word in prompt.metadata.values())
        assert prompt.metadata.keys() == {"shape", "color", "direction"}
