"""`dgpo ablate` at a terminal: its options, its processes, Ctrl-C and kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.system.stopping import StopRequest
from dgpo_kit.toy import run_data
from dgpo_lab.ablation.directory import AblationDirectory, State
from dgpo_lab.ablation.plan import make_plan
from dgpo_lab.ablation.progress import Watcher
from dgpo_lab.ablation.runner import Resources, choose_resources, run_cells
from tests.ablated import HERE, Run, Write, results

# -- the command ----------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_the_cells_and_writes_nothing(dgpo: Run, ablation: Run) -> None:
    done = dgpo("ablate", ablation(), "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "runs/trial: 2 variants x 2 seeds = 4 cells, all valid\n"
        "  abs-advantage: 2 iterations, 32 samples a seed  (baseline)\n"
        "  best-vs-worst: 2 iterations, 32 samples a seed\n"
        "decided by brightness; nothing was written\n"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"axes": [{"key": "wieghting", "values": ["uniform"]}]}, "wieghting: unknown key; did you mean weighting?"),
        ({"axes": [{"key": "rollout.group_size", "values": [4, "many"]}]},
         "rollout.group_size: must be an integer, not 'many'"),
        ({"seeds": 0}, "seeds: at least one seed is needed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("options", [[], ["--dry-run"]], ids=["", "dry run"])
def test_a_mistake_in_the_file_starts_nothing(
    dgpo: Run, ablation: Run, started: list[Any], changes: dict[str, Any], says: str, options: list[str]
) -> None:
    done = dgpo("ablate", ablation(**changes), *options)
    assert (done.code, done.out, started) == (2, "", [])
    assert says in done.err
    assert done.err.count("\n") == 1
    assert not Path("runs").exists()


def test_usage(dgpo: Run, ablation: Run, trained: Any) -> None:
    assert "give either an ablation file or --report" in dgpo("ablate").err
    assert "give either an ablation file or --report" in dgpo("ablate", ablation(), "--report", "x").err
    assert dgpo("ablate", "none.yaml").err == "none.yaml: no such file\n"
    assert dgpo("ablate", "--report", "none").err == "none: no such ablation directory\n"
    done = dgpo("ablate", "--report", trained.path)
    assert done.err == "runs/toy: not an ablation directory (it has no plan.json)\n"
    done = dgpo("ablate", ablation(name="toy"))
    assert done.err == "runs/toy is the directory of a run; choose another `name` for the ablation\n"
    (trained.path / "plan.json").write_text("{}")
    assert "runs/toy/plan.json: cannot be read: it has no 'variants'" in dgpo("ablate", "--report", trained.path).err
    assert dgpo("ablate", "run.yaml").err == (
        "run.yaml: this is a run file, which `dgpo train` reads; expected an ablation file\n"
    )


def test_a_plan_with_what_an_earlier_version_accepted(dgpo: Run, ablation: Run) -> None:
    dgpo("ablate", ablation(seeds=1, name="old"))
    plan = Path("runs/old/plan.json")
    data = json.loads(plan.read_text())
    data["variants"][0]["config"]["run"]["iterations"] = 10**18
    plan.write_text(json.dumps(data))
    done = dgpo("ablate", "--report", "runs/old")
    assert done.code == 2
    assert done.err == (
        "runs/old/plan.json: cannot be read: run.iterations: Input should be less than or equal to 1000000000; if an "
        "earlier version of dgpo wrote it, continue with that version or correct the value; else restore it from a "
        "copy\n"
    )


def test_devices_are_taken_in_turn(
    known: Registry, ablation: Run, write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def chosen(visible: list[str], **changes: Any) -> Resources:
        return choose_resources(make_plan(ablation(**changes), known), visible)

    cuda = {"set": {"run.device": "auto"}}
    found = chosen(["0", "1"], **cuda)
    assert (found.parallel, found.threads) == (2, None)
    assert [found.environment(slot) for slot in range(3)] == [{"CUDA_VISIBLE_DEVICES": n} for n in "010"]
    found = chosen(["4", "GPU-x"], **cuda, parallel=3, devices=[1])
    assert [found.environment(slot) for slot in range(2)] == [{"CUDA_VISIBLE_DEVICES": "GPU-x"}] * 2
    assert chosen(["0"], **cuda, devices=[]).environment(0) == {"CUDA_VISIBLE_DEVICES": ""}
    assert chosen(["0"]).devices == []  # run.device: cpu
    assert chosen([], parallel=4).environment(1) == {"OMP_NUM_THREADS": "2"}
    assert chosen([], parallel=4, threads=1).environment(1) == {}  # the run files say it
    for visible, says in (([], "there is none; leave the key out"), (["0"], "there are 1, from 0")):
        with pytest.raises(UserError, match=f"devices: there is no CUDA device 3: {says}"):
            chosen(visible, **cuda, devices=[3])


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [
        (signal.SIGTERM, "unfinished", 75),
        (signal.SIGUSR1, "unfinished", 75),
        (signal.SIGINT, "unfinished", 0),
        (signal.SIGTERM, "finished", 0),
    ],
)
def test_an_ablation_that_was_preempted_says_so(
    dgpo: Run, ablation: Run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: Any, code: int
) -> None:
    """A signal comes while its cells run; if all of them have finished, nothing is left to do."""

    def ended(*arguments: Any, **keywords: Any) -> dict[str, State]:
        signal.raise_signal(number)
        return {"abs-advantage, seed 0": State("finished"), "best-vs-worst, seed 0": State(status)}

    monkeypatch.setattr("dgpo_lab.ablation.runner.run_cells", ended)
    monkeypatch.setattr("dgpo_lab.commands.ablate._write", lambda plan: None)
    assert dgpo("ablate", ablation()).code == code


# -- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[str]]:
    """`dgpo` in a process of its own, with the toy parts installed for it and for the cells it starts."""
    monkeypatch.chdir(tmp_path)
    metadata = tmp_path / "site/toy-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[dgpo]\ntoy = dgpo_kit.toy:plugin\n")

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "dgpo_cli", *arguments],
            env={**os.environ, "PYTHONPATH": "site", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


@pytest.mark.slow
def test_ctrl_c_and_a_kill_lose_nothing(
    shell: Callable[..., subprocess.Popen[str]], dgpo: Run, started: list[Any]
) -> None:
    """Two cells side by side: stopped once, killed once, then finished, as if never stopped."""
    # Long enough that neither cell ends before the other one, which starts seconds later on a busy machine, is stopped.
    data = run_data("runs", run={"iterations": 180}, evaluation={"every": 60, "prompts": 4, "images": 0})
    Path("run.yaml").write_text(yaml.safe_dump(data | {"checkpoints": {"every": 1}}))
    axis = {"key": "weighting", "values": ["abs-advantage", "uniform"]}
    text = yaml.safe_dump({"name": "trial", "base": "run.yaml", "seeds": [3], "parallel": 2, "axes": [axis]})
    Path("ablation.yaml").write_text(text)
    cells = [HERE / "cells/abs-advantage/seed-3", HERE / "cells/uniform/seed-3"]

    def done() -> list[int]:
        logs = [cell / "metrics.jsonl" for cell in cells]
        return [log.read_text().count("\n") if log.exists() else 0 for log in logs]

    def outcomes() -> list[str]:
        files = [cell / "outcome.json" for cell in cells]
        return [json.loads(file.read_text())["outcome"] if file.exists() else "" for file in files]

    def wait_until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.02)

    process = shell("ablate", "ablation.yaml")
    wait_until(lambda: all(count >= 2 for count in done()))
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert "stopping: saving the state" in said
    assert said.endswith("stopped; run the same command to continue\n")
    stopped = done()
    assert all(0 < count < 180 for count in stopped)
    assert outcomes() == ["interrupted", "interrupted"]

    process = shell("ablate", "ablation.yaml")
    wait_until(lambda: all(count > before for count, before in zip(done(), stopped, strict=True)))
    process.kill()
    process.communicate(timeout=90)
    # Nobody is left who would stop them, so they stop themselves.
    wait_until(lambda: outcomes() == ["interrupted", "interrupted"])

    ended = dgpo("ablate", "ablation.yaml")
    assert ended.code == 0, ended.err
    assert [resumed for _, resumed, _ in started] == [True, True]
    assert done() == [180, 180]
    assert [c["status"] for v in results()["variants"] for c in v["cells"]] == ["finished", "finished"]
    assert "resuming after iteration" in (cells[0] / "train.log").read_text()
    # The same run, never stopped.
    assert dgpo("train", cells[0] / "run.yaml", "--set", "run.output=whole", "--quiet").code == 0
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert (cells[0] / log).read_bytes() == Path("whole/seed-3", log).read_bytes()


def test_a_terminal_shows_a_bar(known: Registry, ablation: Run, started: list[Any]) -> None:
    import io

    from rich.console import Console

    from dgpo_lab.ablation.progress import BarWatcher

    plan, screen = make_plan(ablation(), known), io.StringIO()
    directory = AblationDirectory(plan)
    watcher = BarWatcher(Console(file=screen, force_terminal=True, width=120))
    with directory.claimed("text"):
        run_cells(plan, directory, Resources(2, [], None), stop=StopRequest(), progress=watcher)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", screen.getvalue())
    assert "[4 of 4 finished" in text
    assert "2 running" in text


def test_the_time_left(known: Registry, ablation: Run) -> None:
    """Half of the iterations in 10 seconds: 10 are left."""
    plan = make_plan(ablation(), known)
    cells = list(plan.cells())
    watcher = Watcher(quiet=True)
    watcher.started(plan, {cell.label: State("not started") for cell in cells})
    assert watcher.left() == ""
    watcher.clock -= 10
    for cell in cells[:2]:
        watcher.ended(cell, State("finished"))
    watcher.running = {cells[2].label: cells[2]}
    assert watcher.left() == "left 10.0s"
    assert watcher.summary() == "2 of 4 finished, 1 running"
