"""Metadata: the official format parses, and every mistake is named.

`OFFICIAL` are lines of djghosh13/geneval's `prompts/evaluation_metadata.jsonl`, one of each task.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dgpo_core.data.checks import check_prompts
from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.detector import Detection, Detector, Thresholds
from dgpo_geneval.metadata import COLORS, RELATIONS, TASKS, check_against, parse
from dgpo_geneval.options import GenEvalOptions
from dgpo_geneval.reward import GenEvalReward

OFFICIAL = [
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
    '{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "sports ball", "count": 1}], '
    '"prompt": "a photo of a bench and a sports ball"}',
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], '
    '"prompt": "a photo of two clocks"}',
    '{"tag": "colors", "include": [{"class": "car", "count": 1, "color": "pink"}], "prompt": "a photo of a pink car"}',
    '{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": '
    '["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}',
    '{"tag": "color_attr", "include": [{"class": "wine glass", "count": 1, "color": "purple"}, {"class": "apple", '
    '"count": 1, "color": "black"}], "prompt": "a photo of a purple wine glass and a black apple"}',
]


def prompt(**metadata: Any) -> Prompt:
    return Prompt("a photo", metadata)


def dogs(**clause: Any) -> Prompt:
    return prompt(tag="colors", include=[{"class": "dog", "count": 1, **clause}])


@pytest.mark.parametrize("line", OFFICIAL)
def test_the_official_format_parses(line: str) -> None:
    raw = json.loads(line)
    metadata = parse(Prompt("a photo", raw))
    assert metadata.tag == raw["tag"]
    assert [(c.label, c.count) for c in metadata.include] == [(c["class"], c["count"]) for c in raw["include"]]
    assert [c.color for c in metadata.include] == [c.get("color") for c in raw["include"]]
    assert [c.position and list(c.position) for c in metadata.include] == [c.get("position") for c in raw["include"]]
    assert [(c.label, c.count) for c in metadata.exclude] == [(c["class"], c["count"]) for c in raw.get("exclude", [])]


def test_the_official_file_is_a_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(OFFICIAL) + "\n")
    prompts = load_file(path)
    assert [p.text for p in prompts] == [json.loads(line)["prompt"] for line in OFFICIAL]
    assert [parse(p).tag for p in prompts] == list(TASKS)
    for p in prompts:
        check_against(p, CLASSES, Thresholds())


def test_a_mistake_in_a_file_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    wrong = OFFICIAL[3].replace("pink", "pinkish")
    path.write_text("\n".join([*OFFICIAL, "", wrong, wrong]) + "\n")
    reward = GenEvalReward(GenEvalOptions(), device=torch.device("cpu"), detector=Everything())
    words = rf"{re.escape(str(path))}:8: .*'include\[0\].color': unknown color 'pinkish'; did you mean 'pink'"
    with pytest.raises(UserError, match=words):
        check_prompts(reward, load_file(path))


class Everything(Detector):
    """Knows all classes and colors, and sees nothing."""

    labels = CLASSES
    colors = COLORS

    def __init__(self) -> None:
        super().__init__(None, device=torch.device("cpu"))

    def detect(self, images: torch.Tensor) -> list[list[Detection]]:
        return [[] for _ in images]


def test_the_constants_are_the_benchmarks() -> None:
    assert TASKS == ("single_object", "two_object", "counting", "colors", "position", "color_attr")
    assert COLORS == ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
    assert RELATIONS == ("left of", "right of", "above", "below")


@pytest.mark.parametrize("key", ["ocr_target", "tags", "stage", "included", "exclusive"])
def test_keys_of_other_rewards_and_tools_may_stand_beside(key: str) -> None:
    """Also those that look like one of ours, where ours is there: nothing is missing then."""
    assert parse(prompt(tag="colors", include=[{"class": "dog", "count": 1}], **{key: "HELLO"})).exclude == ()


def test_null_is_absent() -> None:
    """In tables every prompt has every column."""
    bare = {"class": "dog", "count": 1}
    full = bare | {"color": None, "position": None}
    assert parse(prompt(tag="colors", include=[full], exclude=None)) == parse(prompt(tag="colors", include=[bare]))
    no = {"class": "cat", "count": 1}
    filled = parse(prompt(tag="colors", include=[full | {"size": None}], exclude=[no | {"color": None}]))
    assert filled == parse(prompt(tag="colors", include=[bare], exclude=[no]))
    with pytest.raises(UserError, match=r"'include\[0\].count': must be an integer, got null"):
        parse(prompt(tag="colors", include=[bare | {"count": None}]))


DOG = {"class": "dog", "count": 1}
CAT = {"class": "cat", "count": 2}


@pytest.mark.parametrize(
    "given",
    [
        {"include": [{"class": "dog", "count": 1.0}, CAT | {"position": ["above", 0.0]}]},
        {"include": [DOG | {"color": math.nan, "position": math.nan}, CAT | {"position": ["above", 0]}]},
        {"include": [DOG | {"color": "", "position": ""}, CAT | {"position": '["above", 0]'}], "exclude": ""},
        {"include": json.dumps([DOG, CAT | {"position": ["above", 0]}]), "exclude": "[]"},
        {"include": [json.dumps(DOG), json.dumps(CAT | {"position": ["above", 0]})], "exclude": math.nan},
        {"include": {"class": ["dog", "cat"], "count": [1, 2], "position": [None, ["above", 0]]}, "exclude": []},
    ],
)
def test_what_tables_make_of_it(given: dict[str, Any]) -> None:
    """Whole numbers with a point, NaN and empty cells, JSON in cells, and the lists of `datasets`."""
    assert parse(prompt(tag="position", **given)) == parse(
        prompt(tag="position", include=[DOG, CAT | {"position": ["above", 0]}])
    )


@pytest.mark.parametrize("value", [None, False, 0, "no", "", math.nan])
def test_a_flag_of_another_tool_is_no_misspelling(value: Any) -> None:
    assert parse(prompt(tag="colors", include=[DOG], excluded=value)).exclude == ()
    with pytest.raises(UserError, match="unknown key 'excluded'; did you mean 'exclude'"):
        parse(prompt(tag="colors", include=[DOG], excluded=[CAT]))


def test_a_long_prompt_is_cut_in_messages() -> None:
    with pytest.raises(UserError) as caught:
        parse(Prompt("a dog " * 1000, {}))
    assert len(str(caught.value)) < 500
    assert "(6000 characters)" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ({"tags": "colors"}, "tag"),
        ({"Tag": "colors", "include": []}, "tag"),
        ({"tag": "colors", "includes": []}, "include"),
        ({"tag": "colors", "include": [], "exclude": None, "exlude": []}, "exclude"),
    ],
)
def test_a_key_like_one_that_is_missing_is_a_mistake(given: dict[str, Any], near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{near}'"):
        parse(Prompt("p", given))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (prompt(), ["'tag'", "is missing", "no metadata", ".jsonl"]),
        (prompt(tag="colors"), ["'include'", "is missing"]),
        (prompt(tag="colors", include=[]), ["'include'", "at least 1"]),
        (prompt(tag="color", include=[{"class": "dog", "count": 1}]), ["'tag'", "'color'", "did you mean 'colors'"]),
        (
            prompt(tag="colors", include=[{"class": "dog", "count": 1}], exlude=[]),
            ["unknown key 'exlude'", "did you mean 'exclude'"],
        ),
        (dogs(color="gren"), ["'include[0].color'", "unknown color 'gren'", "did you mean 'green'"]),
        (dogs(color="#123456"), ["unknown color '#123456'; (allowed: red, orange"]),
        (dogs(colour="red"), ["'include[0].colour'", "unknown key 'colour'; did you mean 'color'?"]),
        (dogs(xyz="big"), ["unknown key 'xyz'; (allowed: class, count, color, position)"]),
        (
            prompt(
                tag="colors", include=[{"class": "a", "count": 1}], exclude=[{"class": "b", "count": 1, "color": "red"}]
            ),
            ["'exclude[0].color'", "unknown key 'color'; (allowed: class, count)"],
        ),
        (prompt(tag="colors", include=None), ["'include'", "must be a list, got null"]),
        (prompt(tag="colors", include="dog"), ["'include'", "must be a list, got 'dog'"]),
        (prompt(tag="colors", include=["dog"]), ["'include[0]'", 'such as {"class": "dog", "count": 1}, got \'dog\'']),
        (
            prompt(tag="colors", include="[{'class': 'dog'}]"),
            ["'include'", "Python notation", "\"[{'class': 'dog'}]\""],
        ),
        (prompt(tag="colors", include="[{"), ["'include'", "is not valid JSON: '[{'"]),
        (prompt(tag="colors", include={"class": ["dog"], "count": [1, 2]}), ["'include'", "must be a list"]),
        (dogs(count=1.5), ["'include[0].count'", "must be an integer, got"]),
        (dogs(count=math.inf), ["'include[0].count'", "must be an integer, got"]),
        (dogs(count=0), ["'include[0].count'", "must be at least 1, got 0"]),
        (dogs(count=True), ["'include[0].count'", "not the boolean"]),
        (dogs(count="2"), ["'include[0].count'", "must be an integer, got"]),
        (prompt(tag="colors", include=[{"count": 1}]), ["'include[0].class'", "is missing"]),
        (
            prompt(tag="colors", include=[{"class": "\ud83d", "count": 1}]),
            ["'include[0].class'", "half of a character: '\\ud83d'"],
        ),
        (dogs(position=["left", 0]), ["'include[0].position'", "unknown relation 'left'", "'left of'"]),
        (dogs(position=["left of"]), ["'include[0].position'", "must be [relation, index"]),
        (dogs(position=["left of", "0"]), ["'include[0].position'", "earlier include clause, got '0'"]),
        (dogs(position=["left of", True]), ["'include[0].position'", "earlier include clause, got True"]),
        (dogs(position=["left of", 0]), ["include[0].position", "clause 0", "none for the first clause"]),
        (
            prompt(
                tag="position",
                include=[{"class": "a", "count": 1}, {"class": "b", "count": 1, "position": ["above", 1]}],
            ),
            ["include[1].position", "clause 1", "earlier include clause (0)"],
        ),
        (
            prompt(
                tag="position",
                include=[
                    {"class": "a", "count": 1},
                    {"class": "b", "count": 1},
                    {"class": "c", "count": 1, "position": ["above", -1]},
                ],
            ),
            ["include[2].position", "clause -1", "(0 to 1)"],
        ),
        (
            prompt(tag="counting", include=[{"class": "dog", "count": 3}], exclude=[{"class": "dog", "count": 3}]),
            ["exclude[0]", "fewer than 3 'dog'", "requires 3", "at least 4"],
        ),
    ],
)
def test_mistakes_are_named(bad: Prompt, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(bad)
    for word in ["'a photo'", *words]:
        assert word in str(caught.value)


def test_what_the_detector_cannot_see_is_refused() -> None:
    labels = ("circle", "square", "triangle")
    check_against(prompt(tag="counting", include=[{"class": "circle", "count": 16}]), labels, Thresholds())
    with pytest.raises(UserError, match=r"'include\[0\].class': unknown class 'circel'; did you mean 'circle'\?"):
        check_against(prompt(tag="counting", include=[{"class": "circel", "count": 1}]), labels, Thresholds())
    with pytest.raises(UserError, match=r"'exclude\[0\].class': unknown class 'sqare'.*'square'"):
        check_against(
            prompt(tag="counting", include=[{"class": "circle", "count": 1}], exclude=[{"class": "sqare", "count": 1}]),
            labels,
            Thresholds(),
        )
    with pytest.raises(UserError, match=r"'include\[0\].count': 5 is more than the 4 detections"):
        check_against(
            prompt(tag="counting", include=[{"class": "circle", "count": 5}]), labels, Thresholds(per_class=4)
        )


def test_a_long_list_of_classes_is_cut() -> None:
    labels = tuple(f"class{i:02}" for i in range(80))
    with pytest.raises(UserError, match=r"class11 and 68 more\)"):
        check_against(prompt(tag="counting", include=[{"class": "zebra", "count": 1}]), labels, Thresholds())
