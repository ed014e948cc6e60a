"""Thresholds from labeled pictures: against a fine grid, by hand, and through the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dgpo_cli.main import main
from dgpo_geneval.detector import Detection
from dgpo_geneval.detectors.testing import make_tiny_yolox
from dgpo_geneval.evaluator import keep
from dgpo_geneval.labeled_pictures import read_entries
from dgpo_geneval.thresholds import Choice, Labeled, agreement, choose, exact_share, f1

BOX = (0.0, 0.0, 1.0, 1.0)


def picture(objects: dict[str, int], *seen: tuple[str, float]) -> Labeled:
    return Labeled(objects, [Detection(label, score, BOX) for label, score in seen])


TWO = [
    picture({"cat": 1, "dog": 0}, ("cat", 0.75), ("dog", 0.25), ("bird", 0.9)),
    picture({"dog": 2}, ("dog", 0.875), ("dog", 0.5), ("dog", 0.375)),
]


def test_by_hand() -> None:
    """Between the false 0.375 and the true 0.5, all is right; `bird` is not judged."""
    expected = Choice(0.44, 0.375, 0.5, 1.0)
    assert choose(TWO, 0.05, 16, exact_share) == choose(TWO, 0.05, 16, f1) == expected
    assert agreement(TWO, 0.3, 16, f1) == 2 * 3 / (3 + 1 + 3)
    assert agreement(TWO, 0.2, 16, f1) == 2 * 3 / (3 + 2 + 3)
    assert agreement(TWO, 0.2, 16, exact_share) == 1 / 3
    assert agreement(TWO, 0.2, 2, exact_share) == 2 / 3
    assert (f1([(0, 0)]), f1([(3, 0)])) == (1.0, 0.0)


def test_the_widest_of_equally_good_ranges() -> None:
    """One of two counts is right below 0.1 and from 0.8 on."""
    pictures = [
        picture({"cat": 1}, ("cat", 0.1), ("dog", 0.5)),
        picture({"dog": 0, "cat": 0}, ("dog", 0.1), ("cat", 0.8)),
    ]
    found = choose(pictures, 0.05, 16, exact_share)
    assert found.agreement == max(agreement(pictures, t, 16, exact_share) for t in np.linspace(0.05, 0.999, 500))
    assert (round(found.lowest, 6), found.highest) == (0.8, 1.0)


cases = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(1, 39).map(lambda step: step / 40), max_size=4)),
    min_size=1,
    max_size=4,
)


@given(cases, st.sampled_from([f1, exact_share]), st.integers(1, 3))
def test_no_threshold_is_better(drawn: list[tuple[int, list[float]]], measure: Any, per_class: int) -> None:
    pictures = [picture({"cat": true}, *(("cat", score) for score in scores)) for true, scores in drawn]
    found = choose(pictures, 0.05, per_class, measure)
    grid = np.arange(0.05, 1, 1 / 160)
    values = [agreement(pictures, float(threshold), per_class, measure) for threshold in grid]
    assert found.agreement == max(values) == agreement(pictures, found.threshold, per_class, measure)
    assert 0.05 <= found.lowest <= found.threshold < found.highest <= 1
    kept = sum(len(keep(one.detections, found.threshold, per_class).get("cat", [])) for one in pictures)
    right = [min(sum(np.float32(s) > np.float32(found.threshold) for s in scores), per_class) for _, scores in drawn]
    assert kept == sum(right)


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    make_tiny_yolox(folder / "tiny.onnx")
    noise = np.random.default_rng(0).integers(0, 255, (3, 4, 3), np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(folder / "a.png")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(folder / "deep.png")
    (folder / "pictures.jsonl").write_text('{"file": "a.png", "objects": {"cat": 1, "dog": 0}}\n\n')
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["detector-thresholds", *arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("yolox", str(folder / "pictures.jsonl"), "--option", f"file={folder / 'tiny.onnx'}")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert out.startswith("detector yolox: 1 pictures, 2 counts\n")
    code, out, _ = run(capsys, *arguments, "--json", "--option", "score=0.4")
    found = json.loads(out)
    assert code == 0
    assert found["pictures"] == 1
    assert (found["score"]["present"], found["counting"]["present"]) == (0.4, 0.5)
    for one in (found["score"], found["counting"]):
        assert one["agreement"] >= one["present_agreement"]


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    path = tmp_path / "pictures.jsonl"
    path.write_text('{"file": "a\u2028b.png", "objects": {"cat": 1}}\n\n{"file": "c.png", "objects": {"cat": 0}}\n')
    found = [(entry.where, entry.path.name) for entry in read_entries(path)]
    assert found == [(f"{path}:1", "a\u2028b.png"), (f"{path}:3", "c.png")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "pictures.jsonl:2: "),
        ('{"file": "a.png", "objects": {"cat": -1}}', "pictures.jsonl:2: objects.cat: .*greater than or equal to 0"),
        ('{"file": "a.png", "object": {"cat": 1}}', "pictures.jsonl:2: objects: Field required"),
        ('{"file": "b.png", "objects": {"cat": 1}}', "pictures.jsonl:2: file: .*b.png cannot be read"),
        ('{"file": "../deep.png", "objects": {"cat": 1}}', "deep.png cannot be read: its pixels have mode I;16"),
        ('{"file": "a.png", "objects": {"cta": 1}}', "pictures.jsonl:2: .*'cta'; did you mean cat"),
    ],
)
def test_mistakes_are_named(folder: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    path = folder / "wrong" / "pictures.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"\n{line}\n")
    code, _, err = run(capsys, "yolox", str(path), "--option", f"file={folder / 'tiny.onnx'}")
    assert code == 2
    assert "Traceback" not in err

    assert re.search(words, " ".join(err.split())), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("yolo", "x.jsonl"), "x.jsonl cannot be read"),
        (("yolo", "PICTURES"), "yolo"),
        (("yolox", "PICTURES", "--option", "file"), "--option file: must be KEY=VALUE"),
        (("yolox", "PICTURES", "--option", "files=x"), "files"),
        (("shapes", "PICTURES"), "has no options `score` and `counting`"),
    ],
)
def test_wrong_arguments(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    given = [str(folder / "pictures.jsonl") if argument == "PICTURES" else argument for argument in arguments]
    code, _, err = run(capsys, *given)
    assert code == 2
    assert words in " ".join(err.split())
