"""The prompt source: the benchmark's own prompts, generated ones, and splits that share no content."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dgpo_core.data.prompts import digest, load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval import suite
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.detector import Thresholds
from dgpo_geneval.metadata import COLORS, RELATIONS, TASKS, check_against, parse
from dgpo_geneval.options import GenEvalPromptsOptions
from dgpo_geneval.prompts import GenEvalPrompts, lap, schedule
from dgpo_kit.contracts import check_prompts

PUBLISHED = """
a photo of a bench|a photo of a scissors|a photo of an umbrella|a photo of a tv remote
a photo of a bench and a sports ball|a photo of a toothbrush and a snowboard|a photo of a scissors and a bowl
a photo of a person and a stop sign|a photo of a frisbee and an apple|a photo of a computer keyboard and a cell phone
a photo of two clocks|a photo of three benchs|a photo of four knifes|a photo of two sheeps|a photo of three persons
a photo of two wine glasses|a photo of two toothbrushs|a photo of three cows
a photo of a blue fire hydrant|a photo of an orange orange|a photo of a brown skis|a photo of a red cake
a photo of a dog right of a teddy bear|a photo of a skateboard above a person|a photo of a couch left of a toaster
a photo of a refrigerator below a scissors|a photo of a laptop left of a cow
a photo of a purple wine glass and a black apple|a photo of an orange giraffe and a white baseball glove
a photo of a brown giraffe and a white stop sign|a photo of a blue pizza and a yellow baseball glove
""".strip().replace("\n", "|").split("|")  # fmt: skip
"""Some of the benchmark's prompts as published evaluations list them, the first and last of the tasks among them."""


def source(**options: Any) -> GenEvalPrompts:
    return GenEvalPrompts(GenEvalPromptsOptions(**options))


def tags(prompts: list[Prompt]) -> Counter[str]:
    return Counter(p.metadata["tag"] for p in prompts)


def test_the_benchmark_is_drawn_as_its_authors_drew_it() -> None:
    entries = suite.benchmark()
    texts = [entry["prompt"] for entry in entries]
    sizes = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    assert Counter(entry["tag"] for entry in entries) == sizes
    assert len(set(texts)) == 553
    assert set(PUBLISHED) <= set(texts)
    assert texts[:4] == ["a photo of a bench", "a photo of a cow", "a photo of a bicycle", "a photo of a clock"]
    assert texts[-1] == "a photo of a blue pizza and a yellow baseball glove"


def test_another_numpy_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "BENCHMARK_SEED", 44)
    with pytest.raises(UserError, match=r"numpy .* does not draw the benchmark's prompts.*evaluation_metadata.jsonl"):
        suite.benchmark.__wrapped__()


def test_the_held_out_benchmark_is_the_official_file(tmp_path: Path) -> None:
    """Line for line: a run cannot tell one from the other."""
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in suite.benchmark()))
    assert digest(source(heldout="benchmark").prompts("heldout")) == digest(load_file(path))


@pytest.mark.parametrize("options", [{}, {"heldout": "benchmark"}, {"tasks": {"single_object": 1}}])
def test_contract(options: dict[str, Any]) -> None:
    check_prompts(lambda: source(train_count=400, **options))


@pytest.mark.parametrize("heldout", ["split", "benchmark"])
def test_every_prompt_is_valid_and_says_what_its_metadata_says(heldout: str) -> None:
    made = source(
        train_count=3000, heldout=heldout, tasks=dict.fromkeys(TASKS, 1) | {"single_object": int(heldout == "split")}
    )
    for prompt in [*made.prompts("train"), *made.prompts("heldout")]:
        check_against(prompt, CLASSES, Thresholds())
        assert read(prompt.text) == dict(prompt.metadata)


def read(text: str) -> dict[str, Any]:
    """A prompt's text back to metadata, by grammar alone."""
    names, hues = "|".join(sorted(CLASSES, key=len, reverse=True)), "|".join(COLORS)
    thing = rf"an? (?:({hues}) )?({names})"
    if found := re.fullmatch(rf"a photo of (two|three|four) ({names})(?:s|es)", text):
        number, name = {"two": 2, "three": 3, "four": 4}[found[1]], found[2]
        include, bound = [{"class": name, "count": number}], [{"class": name, "count": number + 1}]
        return {"tag": "counting", "include": include, "exclude": bound}
    if found := re.fullmatch(rf"a photo of {thing} ({'|'.join(RELATIONS)}) {thing}", text):
        assert found[1] is None
        target, other = {"class": found[5], "count": 1}, {"class": found[2], "count": 1, "position": [found[3], 0]}
        return {"tag": "position", "include": [target, other]}
    if found := re.fullmatch(rf"a photo of {thing} and {thing}", text):
        pairs = [(found[2], found[1]), (found[4], found[3])]
        include = [{"class": n, "count": 1, **({"color": c} if c else {})} for n, c in pairs]
        return {"tag": "color_attr" if found[1] else "two_object", "include": include}
    # "an orange orange" is a colored one, "an orange" is not: the grammar takes the longer reading.
    found = re.fullmatch(rf"a photo of {thing}", text)
    assert found is not None, text
    clause = {"class": found[2], "count": 1, **({"color": found[1]} if found[1] else {})}
    return {"tag": "colors" if found[1] else "single_object", "include": [clause]}


def about(prompt: Prompt) -> tuple[Any, ...]:
    """The content that the splits may not share, read from the metadata independently of the source."""
    clauses = prompt.metadata["include"]
    if len(clauses) == 2:
        return ("pair", frozenset(c["class"] for c in clauses))
    return (prompt.metadata["tag"], clauses[0]["class"], clauses[0]["count"], clauses[0].get("color"))


@pytest.mark.parametrize("heldout", ["split", "benchmark"])
def test_splits_share_no_content_in_any_order_relation_or_color(heldout: str) -> None:
    for seed in (0, 1):  # the seed never moves a content across
        train = source(heldout=heldout, seed=seed).prompts("train")
        held = source(heldout=heldout, seed=1 - seed).prompts("heldout")
        assert not {about(p) for p in train} & {about(p) for p in held}


def test_a_fifth_of_the_contents_is_held_out() -> None:
    everything = {about(p) for p in source(train_count=60_000, tasks=dict.fromkeys(TASKS, 1)).prompts("train")}
    assert len({a for a in everything if a[0] == "pair"}) == pytest.approx(0.8 * 80 * 79 / 2, rel=0.03)
    assert len({a for a in everything if a[0] == "counting"}) == pytest.approx(0.8 * 240, rel=0.1)
    assert len({a for a in everything if a[0] == "colors"}) == pytest.approx(0.8 * 790, rel=0.1)
    assert len({a for a in everything if a[0] == "single_object"}) == pytest.approx(0.8 * 80, rel=0.1)


def test_training_has_flow_grpos_shares_from_the_beginning() -> None:
    prompts = source(train_count=1700).prompts("train")
    expected = {"position": 700, "counting": 500, "color_attr": 300, "colors": 100, "two_object": 100}
    assert tags(prompts) == expected
    assert tags(prompts[:17]) == {task: count / 100 for task, count in expected.items()}


def test_weights_choose_the_tasks() -> None:
    assert tags(source(train_count=40, tasks={"counting": 3, "colors": 1}).prompts("train")) == {
        "counting": 30,
        "colors": 10,
    }


def test_held_out_prompts_cover_all_tasks_and_none_comes_twice() -> None:
    held = source().prompts("heldout")
    assert len({p.text for p in held}) == len(held)
    counts = tags(held)
    assert set(counts) == set(TASKS)
    assert max(counts.values()) == 100
    assert tags(source(heldout_count=12).prompts("heldout")) == dict.fromkeys(TASKS, 2)


def test_every_prompt_of_a_task_comes_once_before_one_comes_again() -> None:
    prompts = [p.text for p in source(train_count=450, tasks={"counting": 1}).prompts("train")]
    whole = len(set(prompts))
    assert 150 < whole < 240
    assert len(set(prompts[:whole])) == whole
    assert set(prompts[whole : 2 * whole]) == set(prompts[:whole])
    assert prompts[whole : 2 * whole] != prompts[:whole]


def test_a_smaller_count_is_the_beginning_and_a_seed_another_order() -> None:
    many = source(train_count=500).prompts("train")
    assert source(train_count=200).prompts("train") == many[:200]
    assert source(train_count=500, seed=1).prompts("train") != many


def test_nobody_has_a_color() -> None:
    colored = source(train_count=20_000, tasks={"colors": 1, "color_attr": 1}).prompts("train")
    clauses = [c for p in colored for c in parse(p).include]
    assert all(c.color for c in clauses)
    assert "person" not in {c.label for c in clauses}
    assert len({c.label for c in clauses}) == 79


def test_a_task_that_is_held_out_whole_is_refused() -> None:
    with pytest.raises(UserError, match=r"no training prompts for the task single_object.*heldout: split"):
        source(heldout="benchmark", tasks={"single_object": 1}).prompts("train")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": {"position": -1, "counting": 2}}, "0 or more"),
        ({"tasks": {"position": 0}}, "at least one above 0"),
        ({"tasks": {"positions": 1}}, "single_object"),
        ({"heldout": "benchmark", "heldout_count": 100}, "the benchmark has 553"),
    ],
)
def test_options_are_checked(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        GenEvalPromptsOptions(**options)


def test_a_lap_is_a_permutation() -> None:
    assert sorted(lap(50, Random(1))) == list(range(50))
    firsts = np.array([next(lap(5, Random(seed))) for seed in range(500)])
    assert np.bincount(firsts).min() > 70
    assert next(lap(10**12, Random(0))) < 10**12  # nothing is laid out beforehand


def test_a_schedule_is_as_even_as_can_be() -> None:
    assert list(islice(schedule({"counting": 2, "colors": 1}), 6)).count("counting") == 4
