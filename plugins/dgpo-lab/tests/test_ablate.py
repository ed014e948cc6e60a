"""`dgpo ablate` on toy runs: what it runs, what it leaves behind, and how it goes on after whatever ended it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dgpo_core.plugins.registry import Registry
from dgpo_core.system.stopping import StopRequest
from dgpo_core.training.engine import build_engine
from dgpo_kit.toy import BrightnessReward
from dgpo_lab.ablation.directory import AblationDirectory, State, read_plan
from dgpo_lab.ablation.plan import make_plan
from dgpo_lab.ablation.progress import Watcher
from dgpo_lab.ablation.runner import Resources, run_cells
from tests.ablated import HERE, Here, Run, lines, results

CELLS = ["abs-advantage/seed-0", "best-vs-worst/seed-0", "abs-advantage/seed-1", "best-vs-worst/seed-1"]


def test_an_ablation_from_end_to_end(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    done = dgpo("ablate", ablation(target=2.0))
    assert done.code == 0, done.err
    assert [cell for cell, *_ in started] == CELLS
    assert not any(resumed for _, resumed, _ in started)
    said = done.err.splitlines()
    assert said[0] == "ablation runs/trial: 2 variants, seeds 0, 1; 4 cells"
    assert said[-2] == "[4 of 4 finished] best-vs-worst, seed 1 finished"
    assert said[-1].startswith(("abs-advantage has", "best-vs-worst has"))
    assert done.out == "runs/trial/results.html\n"
    found = results()
    assert [v["name"] for v in found["variants"]] == ["abs-advantage", "best-vs-worst"]
    for variant in found["variants"]:
        for cell in variant["cells"]:
            log = lines(f"{variant['name']}/seed-{cell['seed']}", "evaluations.jsonl")
            scores = [e["value"] for e in log if e["role"] == "target"]
            assert (cell["scores"], cell["iterations"], cell["samples"]) == (scores, [0, 1, 2], [0, 16, 32])
        assert variant["score"]["over"] == "seeds and prompts"
        assert set(variant["monitors"]) == {"diversity", "saturation", "edge_density", "dark_pixels"}
    with (HERE / "cells.csv").open() as file:
        assert [(c["variant"], c["status"], c["ended_by"]) for c in csv.DictReader(file)] == [
            (v, "finished", "iterations") for v in ("abs-advantage", "best-vs-worst") for _ in range(2)
        ]
    text = (HERE / "results.md").read_text()
    assert "not reached in 2 of 2" in text
    # `dgpo report` writes the same page.
    page = (HERE / "results.html").read_text()
    (HERE / "results.html").unlink()
    reported = dgpo("report", HERE)
    assert (reported.code, reported.out, reported.err) == (0, "runs/trial/results.html\n", f"{said[-1]}\n")
    assert (HERE / "results.html").read_text() == page
    assert dgpo("report", HERE, "--output", "mine.html").out == "mine.html\n"
    assert Path("mine.html").read_text() == page
    # Every cell is an ordinary run.
    cell = HERE / "cells/best-vs-worst/seed-1"
    assert dgpo("report", cell).code == 0
    assert dgpo("evaluate", cell, "--json").code == 0
    assert dgpo("validate", cell / "run.yaml").code == 0


def test_the_page_is_complete_in_itself(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    dgpo("ablate", ablation(target=0.5, seeds=3))
    text = (HERE / "results.html").read_text()

    class Reader(HTMLParser):
        tags: list[tuple[str, dict[str, str | None]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append((tag, dict(attrs)))

    Reader().feed(text)
    images = [attributes["src"] or "" for tag, attributes in Reader.tags if tag == "img"]
    assert len(images) == 2 * 3  # two prompts; the base model and two variants
    assert all(source.startswith("data:image/png;base64,") for source in images)
    assert not [a for _, a in Reader.tags if str(a.get("href", "#")).startswith("http")]
    assert not any(tag == "script" for tag, _ in Reader.tags)
    ids = [a["id"] for _, a in Reader.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for axis in ("iterations", "samples", "time"):
        assert f'id="axis-{axis}"' in text
        assert f'class="plot by-{axis}"' in text
    assert str(Path.cwd()) not in text


def test_the_report_is_made_anew_from_the_logs(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    dgpo("ablate", ablation())
    kept = {p.name: p.read_bytes() for p in HERE.glob("*.*") if p.stem in ("results", "cells")}
    for name in kept:
        (HERE / name).unlink()
    done = dgpo("ablate", "--report", HERE)
    assert (done.code, done.out) == (0, "runs/trial/results.html\n")
    assert {name: (HERE / name).read_bytes() for name in kept} == kept
    HERE.rename("runs/moved")
    assert dgpo("ablate", "--report", "runs/moved").code == 0


def test_the_same_seed_draws_the_same_prompts_and_noise(
    dgpo: Run, ablation: Run, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by the reward: the first iteration's samples, and those of the base model's evaluation, agree to the bit
    between variants and differ between seeds."""
    seen: dict[str, list[tuple[list[str], Tensor]]] = {}
    score = BrightnessReward.score

    def watched(self: BrightnessReward, media: Tensor, prompts: Any) -> Any:
        seen.setdefault(Here.started[-1][0], []).append(([p.text for p in prompts], media.clone()))
        return score(self, media, prompts)

    monkeypatch.setattr(BrightnessReward, "score", watched)
    dgpo("ablate", ablation(set={"rewards.0.options.scale": 1.0}))
    firsts = {cell: found[:2] for cell, found in seen.items()}  # the evaluation at the start, the first rollout
    for seed in (0, 1):
        one, other = (firsts[f"{variant}/seed-{seed}"] for variant in ("abs-advantage", "best-vs-worst"))
        for (texts, media), (also, same) in zip(one, other, strict=True):
            assert texts == also
            assert torch.equal(media, same)
    assert not torch.equal(firsts["abs-advantage/seed-0"][0][1], firsts["abs-advantage/seed-1"][0][1])
    assert results()["paired"] is True
    starts = [lines(cell, "evaluations.jsonl")[0]["value"] for cell in CELLS]
    assert starts[0] == starts[1] != starts[2] == starts[3]


def test_larger_groups_share_the_noise_of_their_first_members(known: Registry, ablation: Run) -> None:
    file = ablation(axes=[{"key": "rollout.group_size", "values": [2, 4]}])
    rows = {}
    for variant in make_plan(file, known).variants:
        engine = build_engine(variant.config, known)
        draws = engine.draws.at("iteration", 0, "rollout")
        size = variant.config.rollout.group_size
        (rollout,) = engine.rollout_sampler().sample_groups(engine.load_prompts("train")[:2], size, draws, "policy")
        rows[size] = rollout.x0.view(2, size, -1)
        engine.close()
    assert torch.equal(rows[4][:, :2], rows[2])


# -- going on -------------------------------------------------------------------------------------------------------


def test_finished_cells_are_not_run_again_and_more_may_come(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    dgpo("ablate", ablation())
    before = {cell: (HERE / "cells" / cell / "metrics.jsonl").stat().st_mtime_ns for cell in CELLS}
    started.clear()
    assert dgpo("ablate", ablation()).code == 0
    assert started == []
    values = ["abs-advantage", "best-vs-worst", {"use": "softmax", "options": {"temperature": 2}}]
    done = dgpo("ablate", ablation(seeds=3, axes=[{"key": "weighting", "values": values}], target=0.5))
    assert done.code == 0
    assert "continuing, 4 of 9 cells are finished" in done.err
    assert [cell for cell, *_ in started] == [
        "softmax-temperature=2/seed-0", "softmax-temperature=2/seed-1", "abs-advantage/seed-2",
        "best-vs-worst/seed-2", "softmax-temperature=2/seed-2",
    ]  # fmt: skip
    assert {cell: (HERE / "cells" / cell / "metrics.jsonl").stat().st_mtime_ns for cell in CELLS} == before
    assert len(results()["variants"]) == 3


def test_finished_cells_of_another_ablation_are_taken_over_where_they_are_the_same(
    dgpo: Run, ablation: Run, known: Registry, started: list[Any]
) -> None:
    assert dgpo("ablate", ablation(), "--quiet").code == 0
    other = ablation(
        name="other", seeds=[0, 7], axes=[{"name": "w", "variants": {"paper": {}, "ranks": {"weighting": "rank"}}}]
    )
    # Its processes would write to another place than the stand-in expects, so only the copy is looked at.
    plan = make_plan(other, known)
    directory = AblationDirectory(plan)
    before = len(started)
    taken = {cell.label: directory.adopt(cell, [read_plan(HERE)]) for cell in plan.cells()}
    assert len(started) == before
    twin = HERE / "cells/abs-advantage/seed-0"
    assert taken == {"paper, seed 0": twin, "ranks, seed 0": None, "paper, seed 7": None, "ranks, seed 7": None}
    copy = plan.path / "cells/paper/seed-0"
    for log in ("metrics.jsonl", "evaluations.jsonl", "timings.jsonl", "outcome.json"):
        assert (copy / log).read_bytes() == (twin / log).read_bytes()
    assert directory.state(next(iter(plan.cells()))) == State("finished")
    assert yaml.safe_load((copy / "config.yaml").read_text())["run"]["output"] == str(copy.absolute().parent)
    assert dgpo("evaluate", copy, "--json").code == 0
    assert directory.adopt(next(iter(plan.cells())), [read_plan(HERE)]) is None  # what is there stays
    # A flipped digit in a log would be a result.
    log = twin / "evaluations.jsonl"
    log.write_text(log.read_text().replace('"missing": 0', '"missing": 1', 1))
    done = dgpo("ablate", "--report", HERE)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"{log}: line")
    assert done.err.endswith("restore the log from a copy, or train the cell again\n")


def test_only_finished_cells_are_taken_over(dgpo: Run, ablation: Run, known: Registry, started: list[Any]) -> None:
    assert dgpo("ablate", ablation(), "--quiet").code == 0
    (HERE / "cells/abs-advantage/seed-0/outcome.json").unlink()
    plan = make_plan(ablation(name="other"), known)
    taken = [AblationDirectory(plan).adopt(cell, [read_plan(HERE)]) for cell in plan.cells()]
    assert [found is None for found in taken] == [True, False, False, False]


def test_reuse_names_what_was_copied(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    assert dgpo("ablate", ablation()).code == 0
    done = dgpo("ablate", ablation(name="other"), "--reuse", HERE)
    assert done.code == 0, done.err
    assert "4 finished cells copied from runs/trial" in done.err
    assert len(started) == len(CELLS)
    wrong = dgpo("ablate", ablation(name="third"), "--reuse", "nowhere")
    assert (wrong.code, wrong.err) == (2, "nowhere: no such ablation directory\n")
    assert not Path("runs/third").exists()
    assert dgpo("ablate", ablation(name="third"), "--reuse", "nowhere", "--dry-run").code == 2
    assert "--report trains nothing" in dgpo("ablate", "--report", HERE, "--reuse", HERE).err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"set": {"optimizer.learning_rate": 0.5}},
         "variant 'abs-advantage': optimizer.learning_rate: 0.01 when it started, 0.5 now"),
        ({"stop": {"iterations": 3}}, "variant 'abs-advantage': run.iterations: 2 when it started, 3 now"),
        ({"stop": {"seconds": 3}}, "variant 'best-vs-worst': stop: not given when it started, seconds 3.0 now"),
        ({"axes": [{"key": "weighting", "values": ["abs-advantage", "uniform"]}]},
         "axes: the variant 'best-vs-worst' is gone"),
        ({"seeds": [0, 5]}, "seeds: 1 is gone"),
    ],
)  # fmt: skip
def test_the_directory_of_another_ablation_is_refused(
    dgpo: Run, ablation: Run, started: list[Any], changes: dict[str, Any], says: str
) -> None:
    dgpo("ablate", ablation())
    before = {p: p.read_bytes() for p in HERE.rglob("*") if p.is_file()}
    done = dgpo("ablate", ablation(**changes))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("runs/trial contains another ablation; these settings differ:\n")
    assert f"  {says}\n" in done.err
    assert {p: p.read_bytes() for p in HERE.rglob("*") if p.is_file()} == before


def test_a_failed_cell_does_not_lose_the_others(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    axis = {"name": "lamp", "variants": {"whole": {}, "broken": {"rewards.0.options.fail": "raise"}}}
    done = dgpo("ablate", ablation(axes=[axis], set={"evaluation.at_start": False}))
    assert done.code == 1
    assert len(started) == 4
    log = HERE / "cells/broken/seed-0/train.log"
    assert f"its log is {log}" in done.err
    assert done.err.splitlines()[-1] == "2 of 4 cells failed: broken, seed 0; broken, seed 1"
    assert "of the scores of iteration 1 are missing" in log.read_text()
    found = results()
    assert [c["status"] for v in found["variants"] for c in v["cells"]] == ["finished"] * 2 + ["failed"] * 2
    assert found["variants"][1]["score"] is None
    assert any("broken, seed 1 failed: " in line and "train.log" in line for line in found["warnings"])
    # They are tried again, from where they stopped.
    started.clear()
    assert dgpo("ablate", ablation(axes=[axis], set={"evaluation.at_start": False})).code == 1
    assert [(cell, resumed) for cell, resumed, _ in started] == [("broken/seed-0", True), ("broken/seed-1", True)]


def test_a_stop_lets_running_cells_save(known: Registry, ablation: Run, started: list[Any]) -> None:
    plan = make_plan(ablation(), known)
    stop = StopRequest()

    class Stopper(Watcher):
        def began(self, cell: Any, *, resume: bool) -> None:
            super().began(cell, resume=resume)
            stop.request()

    directory = AblationDirectory(plan)
    with directory.claimed("text"):
        states = run_cells(plan, directory, Resources(1, [], None), stop=stop, progress=Stopper(quiet=True))
    assert len(started) == 1
    assert [s.status for s in states.values()] == ["finished", "not started", "not started", "not started"]


def test_one_process_an_ablation(dgpo: Run, ablation: Run, known: Registry, started: list[Any]) -> None:
    file = ablation()
    with AblationDirectory(make_plan(file, known)).claimed("text"):
        done = dgpo("ablate", file)
    assert (done.code, started) == (2, [])
    assert done.err == f"runs/trial is in use by another process (pid {os.getpid()})\n"


def test_a_cell_that_was_killed_before_its_first_checkpoint_begins_again(
    dgpo: Run, ablation: Run, started: list[Any]
) -> None:
    file = ablation()
    cell = HERE / "cells" / CELLS[0]
    cell.mkdir(parents=True)
    (cell / "metrics.jsonl").write_text('{"iteration": 1}\n')
    (cell / "config.yaml").write_text("")
    done = dgpo("ablate", file)
    assert (done.code, done.err) == (
        2, "runs/trial contains cells but no plan.json; choose another `name`, or move the directory\n"
    )  # fmt: skip
    shutil.rmtree(HERE)
    dgpo("ablate", file)
    shutil.rmtree(cell / "checkpoints")
    (cell / "outcome.json").unlink()
    started.clear()
    assert dgpo("ablate", file).code == 0
    assert [(name, resumed) for name, resumed, _ in started] == [(CELLS[0], False)]
    assert [line["iteration"] for line in lines(CELLS[0])] == [1, 2]
    aside = (cell / "before-1/metrics.jsonl").read_text()
    assert [json.loads(line)["iteration"] for line in aside.splitlines()] == [1, 2]


def test_a_cell_without_its_configuration_keeps_its_logs(dgpo: Run, ablation: Run, started: list[Any]) -> None:
    file = ablation()
    dgpo("ablate", file)
    cell = HERE / "cells" / CELLS[0]
    (cell / "config.yaml").unlink()
    (cell / "outcome.json").unlink()
    logged = (cell / "metrics.jsonl").read_bytes()
    assert dgpo("ablate", file).code != 0
    assert (cell / "metrics.jsonl").read_bytes() == logged
    assert "has checkpoints but no config.yaml" in (cell / "train.log").read_text()
