"""`form: reading`: what the judge reads, compared with what should be there as bags of words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_judge.demo_server import completion, send
from dgpo_judge.examples import written_examples
from dgpo_judge.transcript import found_share, words

from .conftest import Playing, pictures

Judge = Callable[..., Any]
Play = Callable[..., Playing]
ASKED = Prompt("a poster", {"target": "ONE two, two THREE"})


def says(*texts: str, finish: str = "stop") -> Callable[[BaseHTTPRequestHandler, Mapping[str, Any]], None]:
    """Answers with the texts in turn; with one request at a time they are those of the samples in order."""
    left = list(texts)

    def play(handler: BaseHTTPRequestHandler, request: Mapping[str, Any]) -> None:
        send(handler, 200, json.dumps(completion(request, left.pop(0), finish=finish)).encode())

    return play


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One  TWO two?\nthree!", {"one": 1, "two": 2, "three": 1}),
        ("don't DONT don’t", {"dont": 3}),
        ("你好，好A１2", {"你": 1, "好": 2, "a12": 1}),
        ("ＯＰＥＮ ½ _x_", {"open": 1, "1": 1, "2": 1, "x": 1}),
        ("?!", {}),
    ],
)
def test_words(text: str, expected: dict[str, int]) -> None:
    assert words(text) == Counter(expected)


@pytest.mark.parametrize(
    ("read", "share"), [("two THREE two one one", 1), ("Two!", 1 / 4), ("two, two", 1 / 2), ("onetwo", 0), ("", 0)]
)
def test_a_word_counts_as_often_as_it_occurs(read: str, share: float) -> None:
    assert found_share(read, "ONE two, two THREE") == share


def test_values_and_diagnostics(play: Play, judge: Judge) -> None:
    texts = ("one two\nTWO three", "TWO", "No text.", "NO TEXT", "nothing of it")
    server = play(says(*texts))
    reward = judge(server, form="reading", concurrency=1)
    scores = reward.score(pictures(5), [ASKED] * 5)
    assert scores.values.tolist() == [1, 0.25, 0, 0, 0]
    assert not scores.missing.any()
    assert [found["text"] for found in scores.diagnostics] == [texts[0], "TWO", "", "", "nothing of it"]
    assert "ONE" not in json.dumps(server.requests[0]["messages"][0]["content"][1]), "the judge is not told"
    assert server.requests[0]["max_tokens"] == 512
    assert "logprobs" not in server.requests[0]


@pytest.mark.parametrize(("text", "finish"), [("one two", "length"), (" \n", "stop")])
def test_a_cut_or_empty_answer_is_missing(play: Play, judge: Judge, text: str, finish: str) -> None:
    reward = judge(play(says(*[text] * 20, finish=finish)), form="reading")
    scores = reward.score(pictures(1), [ASKED])
    assert scores.missing.tolist() == [True]
    assert scores.diagnostics[0]["reason"]


@pytest.mark.parametrize("metadata", [{}, {"target": "?!"}, {"target": ["OPEN"]}])
def test_prompts_without_a_text_are_refused(play: Play, judge: Judge, metadata: dict[str, Any]) -> None:
    reward = judge(play(), form="reading")
    reward.check_prompts([ASKED])
    with pytest.raises(UserError, match=r"signs.jsonl:3: 'a sign': has no text to read, .* give the prompt the key"):
        reward.check_prompts([Prompt("a sign", metadata, origin="signs.jsonl:3")])


def test_the_examples_are_signs(play: Play, judge: Judge) -> None:
    """A judge that reads them scores the good one above the others."""
    examples = written_examples()
    assert [example.name for example in examples] == ["OPEN", "MUSIC", "blank"]
    assert len({example.media.sum().item() for example in examples}) == 3
    reward = judge(play(says("OPEN", "MUSIC", "NO TEXT")), form="reading", concurrency=1)
    assert [e.name for e in reward.examples()] == ["OPEN", "MUSIC", "blank"]
    values = [reward.score(e.media[None], [e.prompt]).values.item() for e in examples]
    assert values == [1, 0, 0]
