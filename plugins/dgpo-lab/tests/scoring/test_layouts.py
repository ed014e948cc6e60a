"""`dgpo score` on folders as benchmarks lay them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgpo_lab.commands.score import Layout
from dgpo_lab.scoring.layouts import LAYOUTS
from tests.scored import Stub

Run = Callable[..., Any]


def image(name: str, level: float = 0.5, side: int = 4) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (round(255 * level),) * 3).save(path)


def scored(done: Any) -> list[tuple[str, str, float]]:
    assert done.code == 0, done.err
    return [(row["file"], row["prompt"], round(row["value"], 1)) for row in json.loads(done.out)]


def geneval(prompts: list[str]) -> None:
    for i, prompt in enumerate(prompts):
        for k in range(2):
            image(f"out/{i:05d}/samples/{k:04d}.png", 0.2 * i + 0.1 * k)
        image(f"out/{i:05d}/grid.png")
        Path(f"out/{i:05d}/metadata.jsonl").write_text(json.dumps({"prompt": prompt, "tag": "colors"}) + "\n")


@pytest.mark.parametrize("options", [[], ["--layout", "geneval"]])
def test_geneval(dgpo: Run, options: list[str]) -> None:
    geneval(["a dog", "a cat"])
    done = dgpo("score", "stub", "out", "--json", *options)
    assert scored(done) == [
        ("out/00000/samples/0000.png", "a dog", 0.0), ("out/00000/samples/0001.png", "a dog", 0.1),
        ("out/00001/samples/0000.png", "a cat", 0.2), ("out/00001/samples/0001.png", "a cat", 0.3),
    ]  # fmt: skip
    assert ("read as GenEval's layout" in done.err) is (not options)
    prompts = [prompt for _, asked in Stub.asked for prompt in asked]
    assert {prompt.metadata["tag"] for prompt in prompts} == {"colors"}


def test_a_grid_is_four_samples(dgpo: Run) -> None:
    pixels = np.zeros((4, 8, 3), dtype=np.uint8)
    pixels[:2, :4], pixels[:2, 4:], pixels[2:, :4], pixels[2:, 4:] = 26, 51, 77, 102
    Path("dpg").mkdir()
    Image.fromarray(pixels).save("dpg/coco1.png")
    Path("p.jsonl").write_text('{"prompt": "long", "item": "coco1"}\n{"prompt": "other", "item": 7}\n')
    done = dgpo("score", "stub", "dpg", "--layout", "dpg", "--prompts", "p.jsonl", "--json")
    assert scored(done) == [
        ("dpg/coco1.png (upper left)", "long", 0.1), ("dpg/coco1.png (upper right)", "long", 0.2),
        ("dpg/coco1.png (lower left)", "long", 0.3), ("dpg/coco1.png (lower right)", "long", 0.4),
    ]  # fmt: skip
    assert {shape for shape, _ in Stub.asked} == {(4, 3, 2, 4)}
    image("dpg/7.png", side=3)
    done = dgpo("score", "stub", "dpg", "--layout", "dpg", "--prompts", "p.jsonl")
    assert done.code == 1
    assert "is not a grid of two by two images: 3 x 3 pixels" in " ".join(done.out.split())


def test_numbers_are_lines_or_prompt_ids(dgpo: Run) -> None:
    for name, level in (("0_0", 0.0), ("0_1", 0.1), ("2", 0.2), ("10_0", 0.3)):
        image(f"out/{name}.png", level)
    lines = [f"line {i}" for i in range(11)]
    Path("p.txt").write_text("\n".join(lines))
    rows = scored(dgpo("score", "stub", "out", "--layout", "numbered", "--prompts", "p.txt", "--json"))
    assert [(file, prompt) for file, prompt, _ in rows] == [
        ("out/0_0.png", "line 0"), ("out/0_1.png", "line 0"), ("out/2.png", "line 2"), ("out/10_0.png", "line 10"),
    ]  # fmt: skip
    ids = [{"prompt": f"id {i}", "prompt_id": i} for i in (10, 2, 0)]
    Path("p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ids))
    rows = scored(dgpo("score", "stub", "out", "--layout", "numbered", "--prompts", "p.jsonl", "--json"))
    assert [prompt for _, prompt, _ in rows] == ["id 0", "id 0", "id 2", "id 10"]


def test_prompts_in_names(dgpo: Run) -> None:
    for name, level in (("a green_ bench_000001", 0.1), ("a red car_000000", 0.2)):
        image(f"out/{name}.png", level)
    rows = scored(dgpo("score", "stub", "out", "--layout", "t2i-compbench", "--json"))
    assert rows == [
        ("out/a green_ bench_000001.png", "a green_ bench", 0.1), ("out/a red car_000000.png", "a red car", 0.2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout", "geneval"], "--layout geneval: out/7: must contain metadata.jsonl and the directory samples"),
        (["--layout", "numbered"], "--layout numbered: requires --prompts FILE"),
        (["--layout", "numbered", "--prompts", "p.txt"], "out/x.png: its name must be the number of its prompt"),
        (["--layout", "dpg", "--prompts", "p.txt"], "out/x.png: no line of the prompt file has the `item` x"),
        (["--layout", "t2i-compbench"], "out/x.png: its name must be PROMPT_000000.png"),
        (["--layout", "t2i-compbench", "--prompts", "p.txt"], "the prompts are in the directory; remove --prompts"),
        (["--layout", "geneval", "--prompt", "x"], "gives each file its prompt; remove --prompt and --metadata"),
    ],
)
def test_mistakes_are_one_message(dgpo: Run, arguments: list[str], message: str) -> None:
    image("out/x.png")
    Path("out/7").mkdir()
    Path("p.txt").write_text("one\n")
    done = dgpo("score", "stub", "out", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_other_numbers_and_files_are_refused(dgpo: Run) -> None:
    image("out/3.png")
    Path("p.txt").write_text("one\n")
    done = dgpo("score", "stub", "out", "--layout", "numbered", "--prompts", "p.txt")
    assert "out/3.png: there is no prompt 3 among 1 prompts" in done.err
    assert "is not a directory" in dgpo("score", "stub", "out/3.png", "--layout", "geneval").err


def test_the_names_are_those_of_the_option() -> None:
    assert [layout.value for layout in Layout] == list(LAYOUTS)
