"""GenEval's prompts in other words."""

from __future__ import annotations

import pytest

from dgpo_core.types import Prompt
from dgpo_geneval import suite
from dgpo_geneval.options import GenEvalPromptsOptions
from dgpo_geneval.prompts import GenEvalPrompts
from dgpo_geneval.suite import Entry, plural
from dgpo_geneval.wording import FRAMES, reworded


def prompt(entry: Entry) -> Prompt:
    entry = dict(entry)
    return Prompt(entry.pop("prompt"), entry)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (suite.single_object("bench"), "a bench"),
        (suite.two_object("bench", "apple"), "a bench as well as an apple"),
        (suite.counting("clock", 2), "a pair of clocks"),
        (suite.counting("bus", 4), "a group of four buses"),
        (suite.colors("car", "orange"), "a car that is orange"),
        (suite.position("dog", "bench", "right of"), "a bench and, to the right of it, a dog"),
        (suite.position("dog", "bench", "above"), "a bench and, above it, a dog"),
        (suite.color_attr("cup", "apple", "red", "black"), "a cup that is red as well as an apple that is black"),
    ],
)
def test_every_task_by_hand(entry: Entry, words: str) -> None:
    assert reworded(prompt(entry)) in {frame.format(words) for frame in FRAMES}


def test_the_benchmark_in_other_words_asks_for_the_same_objects() -> None:
    source = GenEvalPrompts(GenEvalPromptsOptions(heldout="benchmark", train_count=500))
    prompts = source.prompts("heldout")
    texts = source.reworded(prompts)
    trained = {p.text for p in source.prompts("train")}
    assert len(prompts) == 553
    for one, text in zip(prompts, texts, strict=True):
        assert text is not None
        assert text not in trained
        assert "a photo of" not in text
        for clause in one.metadata["include"]:
            name = clause["class"]
            assert (name if clause["count"] == 1 else plural(name)) in text
            assert clause.get("color", "") in text
    edges = [(frame.partition("{}")[0], frame.partition("{}")[2]) for frame in FRAMES]
    used = [sum(t is not None and t.startswith(start) and t.endswith(end) for t in texts) for start, end in edges]
    assert min(used) > 100, "all frames are used"
    assert source.reworded(prompts) == texts


@pytest.mark.parametrize(
    ("include", "words"),
    [
        (
            [
                {"class": "cat", "count": 1},
                {"class": "bench", "count": 1},
                {"class": "dog", "count": 1, "position": ["left of", 1]},
                {"class": "bus", "count": 2, "color": "red"},
            ],
            "a bench and, to the left of it, a dog as well as a cat as well as a pair of buses that are red",
        ),
        (
            [{"class": "bench", "count": 3}, {"class": "dog", "count": 1, "position": ["above", 0]}],
            "a group of three benchs and, above them, a dog",
        ),
    ],
)
def test_every_clause_is_named(include: list[dict[str, object]], words: str) -> None:
    assert reworded(Prompt("x", {"tag": "position", "include": include})) in {frame.format(words) for frame in FRAMES}


def test_what_the_sentences_cannot_say_has_no_other_words() -> None:
    dog, cat = {"class": "dog", "count": 1}, {"class": "cat", "count": 1}
    above = [dog, cat | {"position": ["above", 0]}, {"class": "bus", "count": 1, "position": ["below", 0]}]
    assert reworded(Prompt("x", {"tag": "position", "include": above})) is None
    assert reworded(Prompt("x", {"tag": "counting", "include": [dog], "exclude": [cat]})) is None
    assert reworded(Prompt("x", {"tag": "counting", "include": [dog], "exclude": [dog | {"count": 2}]})) is not None


def test_prompts_of_other_formats_have_no_other_words() -> None:
    assert reworded(Prompt("a photo of a dog")) is None
    assert reworded(Prompt("a photo of a dog", {"tag": "colrs", "include": []})) is None
