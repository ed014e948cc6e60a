"""No faulty answer becomes a number, whatever its fault."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dgpo_core.types import Prompt
from dgpo_judge.demo_server import send

from .conftest import Playing, first, good, pictures
from .faults import BODIES, KINDS, faulty

Judge = Callable[..., Any]
Play = Callable[..., Playing]
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("judge", {}),
    ("judge", {"form": "rating"}),
    ("judge", {"form": "rubric"}),
    ("judge", {"form": "soft-tifa"}),
    ("pairs", {}),
    ("list", {}),
]
PROMPT = Prompt("a cat", {"questions": [["How many cats?", "one"], ["Is it red?", "yes"]]})


def spoiled(play: Play, judge: Judge, count: int, seed: int) -> Counter[str]:
    """Ask until `count` faulty answers came, and check that none was used. Returns how many there were of each kind."""
    seen: Counter[str] = Counter()
    rng, lock = random.Random(seed), threading.Lock()

    def answers(handler: Any, request: Any) -> None:
        with lock:
            kind, body = faulty(request, rng)
            seen[kind] += 1
        send(handler, 200, body)

    server = play(first(good, good, good, good))
    media = pictures(10, size=(3, 32, 32)).clamp(0.2, 0.8)
    for kind, options in FORMS:
        reward = judge(server, kind, retries=0, **options)
        server.play, before = answers, sum(seen.values())
        while sum(seen.values()) - before < count / len(FORMS):
            if kind == "judge":
                scores = reward.score(media, [PROMPT] * len(media))
            else:
                scores = reward.score_group(media, PROMPT, [("key", i) for i in range(len(media))])
            assert scores.missing.all(), (kind, options, seen)
            assert not torch.nan_to_num(scores.values).any(), "and no value hides behind the mark"
            assert all(entry["reason"] for entry in scores.diagnostics)
    return seen


def test_no_faulty_answer_becomes_a_number(play: Play, judge: Judge) -> None:
    spoiled(play, judge, 300, seed=0)


@pytest.mark.slow
def test_ten_thousand_faulty_answers_become_no_number(play: Play, judge: Judge) -> None:
    seen = spoiled(play, judge, 10_000, seed=1)
    assert sum(seen.values()) >= 10_000
    assert {*(kind.__name__ for kind in KINDS), *(f"body {i}" for i in range(len(BODIES)))} == set(seen)
    assert min(seen.values()) > 100


@pytest.mark.parametrize("kind", range(len(FORMS)))
def test_answers_that_are_not_spoiled_are_numbers(play: Play, judge: Judge, kind: int) -> None:
    """So that the test above can fail."""
    name, options = FORMS[kind]
    reward, media = judge(play(), name, **options), pictures(4, size=(3, 32, 32)).clamp(0.2, 0.8)
    if options.get("form") == "soft-tifa":
        prompt = Prompt("a cat", {"questions": [["Is it red?", "yes"]]})
        scores = reward.score(media, [prompt] * 4)
    elif name == "judge":
        scores = reward.score(media, [PROMPT] * 4)
    else:
        scores = reward.score_group(media, PROMPT, [("key", i) for i in range(4)])
    assert not scores.missing.any()
