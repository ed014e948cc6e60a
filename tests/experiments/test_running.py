"""Running experiments: on toy runs, from an ablation file to its record, figure and sheet; and what is refused."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from dgpo_cli.main import main as dgpo
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import run_data
from dgpo_lab.ablation import runner
from dgpo_lab.ablation.results import results_of
from dgpo_lab.ablation.runner import run_cells
from experiments import sheets
from experiments.__main__ import main
from experiments.conduct import Conducted, run_ablation
from experiments.figures import draw
from experiments.record import collect, load, save
from experiments.sheets import draw_sheet


class Here:
    """A cell's process that is none: it has run in this process when it seems to have started."""

    def __init__(self, file: Path, *, resume: bool, log: Path, environment: Mapping[str, str]) -> None:
        with log.open("a") as output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            try:
                dgpo(["train", str(file)])
            except SystemExit as end:
                self.code = int(end.code or 0)

    def poll(self) -> int | None:
        return self.code

    wait = poll

    def terminate(self) -> None:
        """It has ended."""

    kill = terminate


@pytest.fixture
def search(known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A search over two methods and two learning rates on the toy; cells run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "POLL", 0.0)
    monkeypatch.setattr(run_cells, "__kwdefaults__", {**(run_cells.__kwdefaults__ or {}), "launch": Here})
    evaluation = {"every": 1, "prompts": 4, "samples_per_prompt": 2, "images": 3, "model": "policy"}
    Path("run.yaml").write_text(yaml.safe_dump(run_data(tmp_path, run={"iterations": 2}, evaluation=evaluation)))
    return {
        "name": "search", "output": "runs", "base": "run.yaml", "seeds": [3],
        "axes": [
            {"name": "method", "variants": {"paper": {}, "ranks": {"weighting": "rank"}}},
            {"name": "lr", "key": "optimizer.learning_rate", "values": [1e-3, 0.05]},
        ],
    }  # fmt: skip


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_from_an_ablation_to_its_record(search: dict[str, Any]) -> None:
    plan = run_ablation(search, Path("runs"))
    results = results_of(plan)
    assert len(results.variants) == 4
    rows = draw_sheet(plan, Path("samples.png"), steps=None)
    assert draw_sheet(plan, Path("finer.png"), steps=5)
    assert len(rows) == 3
    assert size(Path("samples.png")) == (5 * 132 - 4, 22 + 3 * 132 - 4)  # the base model and four variants
    save(Path("record.json"), collect(Conducted(plan), quick=True, rows=rows))
    record = load(Path("record.json"))
    assert (record.quick, record.rows) == (True, rows)
    assert record.settings["method=ranks lr=0.05"] == ["weighting: rank", "optimizer.learning_rate: 0.05"]
    for before, after in zip(results.variants, record.results.variants, strict=True):
        assert before.score is not None
        assert after.score is not None
        assert after.score.value == pytest.approx(before.score.value, abs=1e-6)
        assert (before.difference is None) == (after.difference is None)
    draw(record.results, ("samples", "seconds"), Path("scores.png"))
    assert size(Path("scores.png"))[0] > 1000


def test_a_second_experiment_takes_over_what_the_first_has_finished(
    search: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_ablation(search, Path("runs"))
    capsys.readouterr()
    run_ablation({**search, "name": "again"}, Path("runs"))
    assert "4 finished cells copied from runs/search" in capsys.readouterr().err


def test_seeds_are_added_to_a_record(search: dict[str, Any]) -> None:
    """The record is that of all seeds at once. Seeds of other runs are refused, and so are those that it has."""
    search |= {"axes": search["axes"][:1]}
    save(Path("record.json"), collect(Conducted(run_ablation(search, Path("runs"))), quick=False, rows=["a"]))
    known = load(Path("record.json"))
    assert known.seeds == [3]
    more = run_ablation({**search, "name": "more", "seeds": [2]}, Path("runs"))
    found = collect(Conducted(more), quick=False, rows=known.rows, known=known)
    save(Path("record.json"), found)
    assert load(Path("record.json")).seeds == [2, 3]
    whole = run_ablation({**search, "name": "whole", "seeds": [2, 3]}, Path("runs"))
    assert json.dumps(found) == json.dumps(collect(Conducted(whole), quick=False, rows=["a"]))
    with pytest.raises(UserError, match="the record has the seeds 2 already"):
        collect(Conducted(more), quick=False, rows=[], known=load(Path("record.json")))
    other = run_ablation({**search, "name": "other", "seeds": [7], "set": {"objective.beta": 7}}, Path("runs"))
    with pytest.raises(UserError, match=r"have other settings: paper, ranks; .*leave out --add"):
        collect(Conducted(other), quick=False, rows=[], known=known)


def test_cells_that_are_left_are_reported_of(search: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(file: Path, **more: Any) -> Here:
        Path(file).write_text("no: run file")
        return Here(file, **more)

    monkeypatch.setattr(run_cells, "__kwdefaults__", {**(run_cells.__kwdefaults__ or {}), "launch": fails})
    with pytest.raises(UserError, match="search: 4 cells are not finished; the same command goes on"):
        run_ablation(search, Path("runs"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "unknown experiment 'nonsense'"),
        (["e1", "--base", "nowhere.yaml"], "nowhere.yaml"),
        (["e5", "--quick", "--pages"], "run the experiment first"),
        (["e5", "--quick", "--add"], "run the experiment first"),
        (["e5", "--tuned"], "--tuned: e5 has no search"),
        (["order", "order-fast", "--quick"], "the page of order needs the record of order-fast"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments, "--output", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_a_sheet_pairs_images_and_prompts_by_number(tmp_path: Path) -> None:
    """Also beyond a hundred images, and where one of them is gone."""
    directory = tmp_path / "images" / "000000"
    directory.mkdir(parents=True)
    for number in (9, 11, 100):
        Image.new("RGB", (1, 1), (number, 0, 0)).save(directory / f"{number:02d}.png")
    (directory / "prompts.json").write_text(json.dumps([str(number) for number in range(101)]))
    column = sheets._images(tmp_path, base=True)
    assert [(prompt, image.getpixel((0, 0))) for prompt, image in column] == [
        (str(number), (number, 0, 0)) for number in (9, 11, 100)
    ]
