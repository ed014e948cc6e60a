"""Cells forked from a process that has imported what they need: the same runs as from fresh processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_core.system.forking import Forked, ForkServer, can_fork
from dgpo_core.system.stopping import StopRequest
from dgpo_lab.ablation import starting
from dgpo_lab.ablation.directory import AblationDirectory
from dgpo_lab.ablation.plan import make_plan
from dgpo_lab.ablation.progress import Watcher
from dgpo_lab.ablation.runner import Resources, run_cells
from dgpo_lab.ablation.starting import WarmStart, launching, start
from tests.ablated import Here, Run
from tests.core.test_supervising import until

ROOT = Path(__file__).parents[3]
forks = pytest.mark.skipif(not can_fork(), reason="processes are forked on Linux only")


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The run files of cells that start as fresh processes, which start nothing."""
    files: list[str] = []
    monkeypatch.setattr(starting, "start", lambda file, **more: files.append(file.name))
    return files


def begin(warm: WarmStart, name: str, tmp_path: Path, **environment: str) -> Any:
    """Start a cell whose run file does not exist: it ends at once."""
    return warm(tmp_path / name, resume=False, log=tmp_path / "train.log", environment=environment)


@pytest.mark.parametrize(("on_cpu", "forks"), [(True, True), (True, False), (False, True)])
def test_cells_are_forked_on_the_cpu_where_the_system_can(
    monkeypatch: pytest.MonkeyPatch, on_cpu: bool, forks: bool
) -> None:
    monkeypatch.setattr(starting, "can_fork", lambda: forks)
    with launching(on_cpu=on_cpu, say=print) as launch:
        assert (launch is start) == (not (on_cpu and forks))


def test_what_uses_the_cpu() -> None:
    assert Resources(2, [], None).on_cpu
    assert Resources(2, [""], None).on_cpu
    assert not Resources(2, ["0"], None).on_cpu


@forks
def test_a_forked_cell_is_a_command_line(tmp_path: Path) -> None:
    with closing(WarmStart(pytest.fail)) as warm:
        for _ in range(2):
            assert begin(warm, "none.yaml", tmp_path).wait(60) == 2
    assert (tmp_path / "train.log").read_text() == f"{tmp_path}/none.yaml: no such file\n" * 2


@forks
def test_other_variables_need_another_process(tmp_path: Path, cold: list[str]) -> None:
    with closing(WarmStart(pytest.fail)) as warm:
        process = begin(warm, "one.yaml", tmp_path, OMP_NUM_THREADS="2")
        begin(warm, "two.yaml", tmp_path, OMP_NUM_THREADS="3")
        assert isinstance(process, Forked)
        process.wait(60)
    assert cold == ["two.yaml"]


@forks
def test_a_lost_server_is_said_once(tmp_path: Path, cold: list[str]) -> None:
    said: list[str] = []
    with closing(WarmStart(said.append)) as warm:
        begin(warm, "one.yaml", tmp_path).wait(60)
        assert warm._server is not None
        os.kill(warm._server.pid, signal.SIGKILL)
        for name in ("two.yaml", "three.yaml"):
            begin(warm, name, tmp_path)
    assert cold == ["two.yaml", "three.yaml"]
    assert said == ["the process from which cells start has ended; cells start without it, which takes longer"]


@forks
def test_a_server_that_is_not_as_a_fresh_process_forks_none(
    tmp_path: Path, cold: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """What an import changes is reported by each cell, as ever; nothing new is said."""
    (tmp_path / "odd.py").write_text("import os\nos.chdir('/')\n")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'dgpo_cli.warm' in sys.orig_argv:\n"
        "    from dgpo_core.system import forking\n"
        "    forking.Job.running = lambda job: __import__('contextlib').nullcontext(\n"
        "        __import__('os').write(job.notes, b'[\"odd\"]'))\n"
    )
    caplog.set_level("DEBUG")
    with closing(WarmStart(pytest.fail)) as warm:
        path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        for name in ("one.yaml", "two.yaml", "three.yaml"):
            process = begin(warm, name, tmp_path, PYTHONPATH=path)
            if process is not None:
                process.wait(60)
    assert cold == ["two.yaml", "three.yaml"]
    reason = "an import changes the working directory"
    assert caplog.messages == [f"cells start as fresh processes: {reason}"]


SLEEPER = """
import os, sys, time
from dgpo_core.system.forking import serve
from dgpo_core.system.supervising import end_with_parent
job = serve(int(sys.argv[1]), lambda names: None)
if job is not None:
    end_with_parent(job.server, lambda: os._exit(0), 0.02)
    print("here", flush=True)
    time.sleep(60)
"""


@forks
def test_a_cell_that_the_end_of_its_server_stopped_goes_on(
    known: Registry, ablation: Run, started: list[Any], tmp_path: Path
) -> None:
    plan = make_plan(ablation(seeds=1), known)
    directory = AblationDirectory(plan)
    with ForkServer([sys.executable, "-c", SLEEPER], environment=os.environ) as server:

        def launch(file: Path, **more: Any) -> Any:
            if started or not first:
                return Here(file, **more)
            first.clear()
            with (tmp_path / "log").open("ab") as output:
                process = server.start([], output=output)
            until(lambda: "here" in (tmp_path / "log").read_text())
            os.kill(server.pid, signal.SIGKILL)
            return process

        first = [True]
        with directory.claimed("text"):
            states = run_cells(
                plan, directory, Resources(1, [], None), stop=StopRequest(), progress=Watcher(quiet=True), launch=launch
            )
    assert [state.status for state in states.values()] == ["finished", "finished"]
    assert [cell for cell, _, _ in started] == ["abs-advantage/seed-0", "best-vs-worst/seed-0"]


# -- real cells -----------------------------------------------------------------------------------------------------


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`short(name)`: an ablation of two cells over the miniature, two iterations each."""
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load((ROOT / "experiments/base.yaml").read_text())
    data["run"]["iterations"], data["rollout"]["groups"] = 2, 2
    data["evaluation"] |= {"every": 2, "prompts": 4, "images": 1, "many_step": None}
    Path("run.yaml").write_text(yaml.safe_dump(data))

    def write(name: str) -> Path:
        axis = {"key": "weighting", "values": ["abs-advantage", "uniform"]}
        ablation = {"name": name, "base": "run.yaml", "output": "runs", "seeds": 1, "parallel": 1, "axes": [axis]}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(ablation))
        return Path(f"{name}.yaml")

    return write


def log_of(cell: Path) -> str:
    """A cell's log without what takes time and where it is."""
    text = (cell / "train.log").read_text().replace("runs/warm", "runs/cold")
    text = re.sub(r"loading .*\n", "", text)
    return re.sub(r"\d+m?\d*(\.\d+)?s\b", "TIME", text)


def record_of(cell: Path) -> tuple[dict[str, Any], str]:
    """run.json without its seal, and the process that started the cell."""
    record = json.loads((cell / "run.json").read_text())
    record = {key: value for key, value in record.items() if key not in ("sha256", "seal")}
    parent = record["command"].pop(1)
    record["command"] = [word.replace("runs/warm", "runs/cold") for word in record["command"]]
    return record, parent


@pytest.mark.slow
@forks
def test_real_cells_are_the_same_to_the_bit(short: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dgpo_cli", "ablate", short("warm")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    plan = make_plan(short("cold"), get_registry())
    directory, watcher = AblationDirectory(plan), Watcher(quiet=True)
    with directory.claimed("text"):
        run_cells(plan, directory, Resources(1, [], None), stop=StopRequest(), progress=watcher, launch=start)
    parents = set()
    for cell in plan.cells():
        mine, twin = cell.path, Path("runs/warm") / cell.path.relative_to("runs/cold")
        files = {path.relative_to(mine) for path in mine.rglob("*") if path.is_file()}
        assert {path.relative_to(twin) for path in twin.rglob("*") if path.is_file()} == files
        exact = [path for path in files if path.suffix in (".jsonl", ".safetensors", ".png", ".webp")]
        for path in exact:
            if path.name != "timings.jsonl":
                assert (mine / path).read_bytes() == (twin / path).read_bytes(), path
        assert len([path for path in exact if path.suffix == ".safetensors"]) >= 2
        (record, ours), (other, parent) = record_of(mine), record_of(twin)
        assert (record, ours) == (other, str(os.getpid()))
        assert log_of(mine) == log_of(twin)
        parents.add(parent)
    assert len(parents) == 1, "all are forked from one process"
    assert parents != {str(os.getpid())}
