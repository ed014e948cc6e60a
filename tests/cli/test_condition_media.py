"""Prompts that carry more than text, through every command that reads some."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_core.types import Conditioning, Prompt
from dgpo_kit.toy import ToyBackbone

Run = Callable[..., Any]
WriteRun = Callable[..., Path]


def image(path: str, value: int) -> str:
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


def lines(path: str, *records: dict[str, Any]) -> Path:
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))
    return Path(path)


@pytest.fixture
def edits(write_run: WriteRun) -> Path:
    """A run file whose prompts carry media and negative prompts."""
    file = write_run(
        prompts={"train": "train.jsonl", "heldout": "heldout.jsonl"},
        rollout={"guidance": 2.0},
        run={"iterations": 1},
        evaluation={"prompts": 2, "images": 2},
    )
    image("a.png", 10), image("b.png", 200)
    lines("train.jsonl", {"prompt": "x", "media": "a.png", "negative_prompt": "<b>no</b>"}, {"prompt": "y"})
    lines(
        "heldout.jsonl", {"prompt": "h", "media": ["b.png", "a.png"], "negative_prompt": "<b>no</b>"}, {"prompt": "i"}
    )
    return file


@pytest.fixture
def editing(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """The toy takes media, and says what it was given."""
    seen: list[Prompt] = []
    encode = ToyBackbone.encode

    def encoded(self: ToyBackbone, prompts: Sequence[Prompt]) -> Conditioning:
        seen.extend(prompts)
        found = encode(self, prompts)
        means = [sum(float(medium.read().mean()) for medium in prompt.media) for prompt in prompts]
        return Conditioning({"c": found.tensors["c"] + torch.tensor(means)[:, None]})

    monkeypatch.setattr(ToyBackbone, "encode", encoded)
    monkeypatch.setattr(ToyBackbone, "check_prompts", lambda self, prompts: None)
    return seen


def test_a_run_keeps_and_shows_what_its_samples_were_drawn_from(dgpo: Run, edits: Path, editing: list[Prompt]) -> None:
    found = dgpo("validate", edits)
    assert "training prompts: 2 from " in found.out
    assert "(1 with media, 1 with a negative prompt)\n" in found.out
    assert dgpo("train", edits).code == 0
    first = next(prompt for prompt in editing if prompt.media and prompt.text == "x")
    assert (first.negative, first.size) == ("<b>no</b>", (8, 8))
    assert {p.text for p in editing if p.media} == {"x", "h", "<b>no</b>"}  # the negative prompt is shown the media too
    record = json.loads(Path("runs/toy/run.json").read_text())["prompts"]
    assert {key: record["train"][key] for key in ("count", "media", "negative_texts")} == {
        "count": 2, "media": 1, "negative_texts": 1,
    }  # fmt: skip
    reported = json.loads(next(Path("runs/toy/images").glob("*/conditions.json")).read_text())
    assert [one and one["negative_prompt"] for one in reported] == ["<b>no</b>", None]
    assert dgpo("report", "runs/toy", "--output", "page.html").code == 0
    page = Path("page.html").read_text()
    assert '<img class="medium tiny" src="data:image/png;base64,' in page
    assert "negative prompt: &lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>no</b>" not in page
    assert "2, 1 with media, 1 with a negative prompt, SHA-256 " in page
    image("a.png", 11)
    refused = dgpo("train", edits, "--resume", "--set", "run.iterations=2")
    assert refused.code == 2
    assert "prompts.train has changed since the run started (SHA-256 in run.json), or its media" in refused.err


def test_a_medium_that_changes_in_the_middle_costs_no_iteration(
    dgpo: Run, edits: Path, editing: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines("train.jsonl", {"prompt": "x", "media": "a.png"}, {"prompt": "y", "media": "b.png"})
    encode = ToyBackbone.encode

    def encoded(self: ToyBackbone, prompts: Sequence[Prompt]) -> Conditioning:
        found = encode(self, prompts)
        if prompts[0].text in "xy":
            image("a.png", 1), image("b.png", 1)
        return found

    monkeypatch.setattr(ToyBackbone, "encode", encoded)
    settings = ("rollout.groups=1", "run.iterations=3", "evaluation.at_start=false", "rollout.guidance=1")
    refused = dgpo("train", edits, *(word for setting in settings for word in ("--set", setting)))
    assert refused.code == 2
    assert ".png: has changed since the prompts were read (SHA-256 was " in refused.err
    assert Path("runs/toy/checkpoints/000001").is_dir()


def test_a_model_of_text_is_refused_such_prompts(dgpo: Run, edits: Path) -> None:
    for command in (("train", edits), ("train", edits, "--dry-run"), ("evaluate", edits)):
        refused = dgpo(*command)
        assert refused.code == 2
        assert ".jsonl:1: the prompt has media" in refused.err
        assert "toy accepts only text" in refused.err
    assert not Path("runs").exists()


def test_bad_media_are_refused_before_a_run(dgpo: Run, edits: Path) -> None:
    Path("b.png").write_text("no image")
    for command in (("validate", edits), ("train", edits), ("evaluate", edits, "--prompts", "heldout.jsonl")):
        refused = dgpo(*command)
        assert refused.code == 2
        assert "heldout.jsonl:1: media: " in refused.err
        assert "b.png: not a readable image or video" in refused.err


def test_samples_are_drawn_from_media(dgpo: Run, edits: Path, editing: list[Prompt]) -> None:
    arguments = ("sample", edits, "-p", "q", "--media", "a.png", "--media", "b.png", "-n", 2, "--negative", "bad")
    assert dgpo(*arguments, "--output", "out").code == 0
    (asked,) = [prompt for prompt in editing if prompt.text == "q"]
    assert [Path(medium.path).name for medium in asked.media] == ["a.png", "b.png"]
    assert asked.negative == "bad"
    assert json.loads(Path("out/conditions.json").read_text())[1]["negative_prompt"] == "bad"
    noted = dgpo(*arguments, "--output", "flat", "--guidance", 1)
    assert "note: 1 of 1 prompts have a negative prompt (the first is --prompt), which has no effect" in noted.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-p", "q", "--media", "c.png"), "--media: c.png: no such file"),
        (("-p", "q", "--negative", "\udcff"), "--negative: "),
        (("--media", "a.png"), "--media belongs to --prompt; prompts of a file have their own, by the key `media`"),
        (("--prompts", "train.jsonl", "--negative", "x"), "--negative belongs to --prompt"),
    ],
)
def test_sample_refuses_what_cannot_be(dgpo: Run, edits: Path, arguments: tuple[str, ...], expected: str) -> None:
    refused = dgpo("sample", edits, *arguments)
    assert refused.code == 2
    assert expected in refused.err


def test_scored_files_have_prompts_with_media(dgpo: Run, edits: Path) -> None:
    image("one.png", 100), image("two.png", 50)
    assert dgpo("score", "brightness", "one.png", "two.png", "--prompts", "train.jsonl").code == 0
    lines("bad.jsonl", {"prompt": "x"}, {"prompt": "y", "media": "gone.png"})
    refused = dgpo("score", "brightness", "one.png", "two.png", "--prompts", "bad.jsonl")
    assert refused.code == 2
    assert "bad.jsonl:2: media: gone.png: no such file" in refused.err


def test_what_samples_were_drawn_from_may_be_damaged(dgpo: Run, trained: Any) -> None:
    (sorted((trained.path / "images").iterdir())[0] / "conditions.json").write_text("{")
    found = dgpo("report", trained.path, "--output", "page.html")
    assert found.code == 0
    assert (
        "The conditions of the images in 000000 are unknown: conditions.json cannot be read."
        in Path("page.html").read_text()
    )
