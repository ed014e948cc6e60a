"""`dgpo score --suite`: folders as benchmarks lay them out, aggregated as the suite does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dgpo_core.plugins.registry import Registry
from dgpo_schemas.suites import SuiteRecord
from tests.scored import Run
from tests.suited import TASKS, SuitePlugin


@pytest.fixture(autouse=True)
def suite(known: Registry) -> None:
    known.register(SuitePlugin(), distribution="toy-suite", version="1.5")


def level(prompt: int, member: int) -> int:
    return 10 + 30 * prompt + 7 * member


def image(name: str, value: int) -> None:
    """A gray image; the brightness of the toy reward is value / 255."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path)


def numbered(count: int = 6) -> None:
    for i in range(count):
        for k in range(2):
            image(f"out/{i}_{k}.png", level(i, k))


def geneval(order: list[int]) -> None:
    """Directories of another order than the suite's prompts, which their texts identify."""
    for place, i in enumerate(order):
        for k in range(2):
            image(f"out/{place:05d}/samples/{k:04d}.png", level(i, k))
        Path(f"out/{place:05d}/metadata.jsonl").write_text(
            json.dumps({"prompt": f"toy picture {i}", "other": 1}) + "\n"
        )


def means(left_out: tuple[tuple[int, int], ...] = ()) -> dict[str, float]:
    by_task = {
        task: [level(i, k) / 255 for i in range(6) for k in range(2) if i % 3 == place and (i, k) not in left_out]
        for place, task in enumerate(TASKS)
    }
    found = {task: sum(values) / len(values) for task, values in by_task.items()}
    return {"overall": sum(found.values()) / 3, **found}


def record_of(done: Any) -> SuiteRecord:
    (data,) = json.loads(done.out)
    return SuiteRecord.model_validate({**data, "resampled": {}})


@pytest.mark.parametrize("layout", ["numbered", "geneval"])
def test_a_folder_has_the_scores_of_the_suite(dgpo: Run, layout: str) -> None:
    numbered() if layout == "numbered" else geneval([3, 0, 5, 1, 2, 4])
    done = dgpo("score", "out", "--suite", "toy-suite", "--json", "--output", "scores.json")
    assert (done.code, done.err) == (0, "")
    record = record_of(done)
    assert {name: score.value for name, score in record.scores.items()} == pytest.approx(means(), abs=1e-7)
    assert (record.target, record.model, record.iteration, record.sampling) == ("out", "", None, {})
    assert (record.prompts, record.samples_per_prompt, record.not_comparable) == (6, 2, [])
    assert record.rewards["light"].missing == 0
    samples = json.loads(Path("scores.json").read_text())["samples"]["toy-suite"]
    assert [line["prompt"] for line in samples] == [f"toy picture {i}" for i in range(6) for _ in range(2)]
    assert [line["light"]["value"] for line in samples] == pytest.approx(
        [level(i, k) / 255 for i in range(6) for k in range(2)], abs=1e-7
    )


def test_the_table_is_that_of_evaluate_and_compare_reads_the_file(dgpo: Run) -> None:
    numbered()
    done = dgpo("score", "out", "--suite", "toy-suite", "--suite-option", "toy-suite.scale=0.5", "--output", "a.json")
    lines = done.out.splitlines()
    assert lines[0] == "out"
    assert "suite of toy-suite 1.5" in done.out
    assert lines[-1] == "not comparable with published scores: the scale of brightness is not 1"
    assert f"{means()['overall'] / 2:.3f}" in done.out
    compared = dgpo("compare", "a.json")
    assert (compared.code, compared.err) == (0, "")
    assert "toy-suite" in compared.out


def test_absent_samples_are_missing(dgpo: Run) -> None:
    """A prompt without files too; neither counts as wrong."""
    numbered()
    left_out = ((1, 0), (1, 1), (2, 1))
    for i, k in left_out:
        Path(f"out/{i}_{k}.png").unlink()
    done = dgpo("score", "out", "--suite", "toy-suite", "--json")
    assert done.code == 1
    assert done.err == "note: 1 of 6 prompts have no files, such as 'toy picture 1'; they count as missing\n"
    record = record_of(done)
    assert {name: score.value for name, score in record.scores.items()} == pytest.approx(means(left_out), abs=1e-7)
    assert (record.rewards["light"].missing, record.samples_per_prompt) == (3, 2)
    assert record.not_comparable == ["3 of 12 samples have no score of light"]


def test_another_number_of_samples_is_not_comparable(dgpo: Run) -> None:
    for i in range(6):
        image(f"out/{i}.png", 9)
    record = record_of(dgpo("score", "out", "--suite", "toy-suite", "--json"))
    assert record.not_comparable == ["1 samples per prompt instead of 2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out", "--suite", "toy-sweet"], "unknown suite 'toy-sweet'; did you mean toy-suite?"),
        (["out", "--suite", "toy-suite", "--suite-option", "toy-suite.scal=1"], "did you mean scale?"),
        (["out", "--suite-option", "toy-suite.scale=1"], "--suite-option toy-suite.scale=1: requires --suite NAME"),
        (
            ["out", "--suite", "toy-suite", "-p", "x", "--option", "a=1"],
            "--suite toy-suite: has its own prompts and rewards; remove --prompt and --option",
        ),
        (["no", "--suite", "toy-suite"], "--layout numbered: no is not a directory"),
        (["out", "--suite", "toy-suite"], "out/9.png: there is no prompt 9 among 6 prompts"),
        (["other", "--suite", "toy-suite"], "'a cat' is no prompt of the suite toy-suite"),
        (["out", "--suite", "toy-suite", "--output", "out"], "--output out: is a directory; name a file"),
    ],
)
def test_mistakes_are_one_message(dgpo: Run, arguments: list[str], message: str) -> None:
    image("out/9.png", 1)
    image("other/00000/samples/0000.png", 1)
    Path("other/00000/metadata.jsonl").write_text('{"prompt": "a cat"}\n')
    done = dgpo("score", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
