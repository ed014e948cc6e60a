"""The cache of prompts: each is encoded once while it is kept, whatever asks for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import torch

from dgpo_pickscore.cache import Text, TextCache


class Counting:
    """Encodes a text as its length, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> list[Text]:
        self.calls.append(list(texts))
        return [Text(torch.tensor([float(len(text))]), len(text), False) for text in texts]


def test_each_text_is_encoded_once_and_order_is_kept() -> None:
    encode = Counting()
    cache = TextCache(encode, 10)
    assert [t.tokens for t in cache(["bb", "a", "bb", "ccc"])] == [2, 1, 2, 3]
    assert [t.tokens for t in cache(["a", "dddd", "a"])] == [1, 4, 1]
    assert cache([]) == []
    assert encode.calls == [["bb", "a", "ccc"], ["dddd"]]
    assert len(cache) == 4


def test_the_least_recently_used_goes_first() -> None:
    encode = Counting()
    cache = TextCache(encode, 2)
    for text in ("a", "bb", "a", "ccc"):  # "bb" is the one that goes
        cache([text])
    assert len(cache) == 2
    cache(["a"])
    cache(["ccc"])
    cache(["bb"])
    assert encode.calls == [["a"], ["bb"], ["ccc"], ["bb"]]


def test_more_texts_at_once_than_are_kept() -> None:
    cache = TextCache(Counting(), 2)
    texts = ["a" * n for n in range(1, 6)]
    assert [t.tokens for t in cache(texts)] == [1, 2, 3, 4, 5]
    assert len(cache) == 2


def test_many_threads() -> None:
    cache = TextCache(Counting(), 5)
    wrong: Counter[str] = Counter()

    def work(seed: int) -> None:
        for step in range(200):
            texts = ["x" * ((seed * step + i) % 9 + 1) for i in range(4)]
            if [t.tokens for t in cache(texts)] != [len(text) for text in texts]:
                wrong["answers"] += 1

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 5
