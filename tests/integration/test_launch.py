"""`dgpo train --processes`, torchrun and accelerate launch: as a person starts them."""

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
import torch
import yaml

import dgpo_cli.launch
from dgpo_cli.launch import Layout, check, launch
from dgpo_cli.main import main
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import load
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import plugin, run_data

Launcher = Callable[[Path], subprocess.CompletedProcess[str]]
CHILD = str(Path(__file__).with_name("child.py"))


def write(directory: Path, name: str = "toy", iterations: int = 3, **changes: Any) -> Path:
    sections = {"run": {"iterations": iterations, "name": name}} | changes
    file = directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(run_data(directory, **sections)))
    return file


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load(sorted((run / "checkpoints").iterdir())[-1]).weights


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip


def launched(file: Path, *options: str, processes: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    """A launch as `dgpo train --processes` does it, of a program that knows the toy parts."""
    code = (
        "import sys; from dgpo_cli.launch import *;"
        f"sys.exit(launch(Layout({processes}), ['train', *sys.argv[1:]], [{CHILD!r}]))"
    )
    return run(sys.executable, "-c", code, str(file), *options, **environment)


def test_any_signal_that_ends_a_process_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    last = int(signal.SIGRTMAX) - 1  # one without a name
    code = f"import os; os.kill(os.getpid(), {last})"
    assert launch(Layout(2), [], ["-c", code]) == 1
    assert f"process 0 of 2 was terminated by signal {last}\n" in capfd.readouterr().err


def test_layout() -> None:
    made = Layout(4, machines=2, machine=1, address="10.0.0.1:29500").environment(2)
    assert made == {
        "RANK": "6", "LOCAL_RANK": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "complaint"),
    [
        (Layout(2, machines=2), "--address: required with several machines"),
        (
            Layout(2, machines=2, machine=2, address="a:1"),
            "--machine-rank: must be from 0 to 1, got",
        ),
        (Layout(100_000), "--processes: 100000 is too many for this machine; .*: at most [0-9]+$"),
        (Layout(2, address="29500"), "--address: '29500' is not HOST:PORT"),
        (Layout(2, address="host:port"), "--address: 'host:port' is not HOST:PORT"),
        (Layout(2, address="host:70000"), "--address: 'host:70000' is not HOST:PORT"),
    ],
)
def test_options_that_do_not_go_together(layout: Layout, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check(layout)


def test_inside_of_another_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="this process was started by torchrun or accelerate launch"):
        check(Layout(2))


def test_the_options_reach_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def note(layout: Layout, command: list[str]) -> int:
        seen.append((layout, command))
        return 5

    monkeypatch.setattr(dgpo_cli.launch, "launch", note)
    example = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
    wanted = [
        "train",
        example,
        "--resume=must",
        "--quiet",
        "--preset",
        "24gb",
        "--preset",
        "48gb",
        "--set",
        "run.seed=3",
        "--max-iterations",
        "4",
    ]
    with pytest.raises(SystemExit) as caught:
        main([*wanted, "--processes", "2"])
    assert caught.value.code == 5
    assert seen == [(Layout(2), wanted)]
    with pytest.raises(SystemExit):
        main(["train", example, "--dry-run", "--processes", "2"])
    assert seen[1] == (Layout(2), ["train", example, "--dry-run"])


@pytest.mark.parametrize(("option", "code"), [([], 75), (["--preempted-ok"], 0)])
def test_a_launch_that_was_preempted_says_so(monkeypatch: pytest.MonkeyPatch, option: list[str], code: int) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(dgpo_cli.launch, "launch", lambda layout, command: seen.append(command) or 75)
    example = str(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
    with pytest.raises(SystemExit) as caught:
        main(["train", example, *option, "--processes", "2"])
    assert caught.value.code == code
    assert seen == [["train", example]], "the processes themselves report it"


def test_processes_that_were_preempted_have_not_failed(capfd: pytest.CaptureFixture[str]) -> None:
    """One of two is at its end before the signal comes; nothing that it printed is shown as an error."""
    code = "import os, sys; print('said'); sys.exit(75 if os.environ['RANK'] == '1' else 0)"
    assert launch(Layout(2), [], ["-c", code]) == 75
    assert capfd.readouterr().err == ""


def test_any_command_is_run_again_in_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was given, whatever was given."""
    seen: list[Any] = []
    monkeypatch.setattr(dgpo_cli.launch, "launch", lambda *given, patience: seen.append((*given, patience)) or 5)
    (tmp_path / "p.txt").write_text("a circle\n")
    words = [
        "--processes",
        "3",
        "--set",
        "a=1",
        "run.yaml",
        "--set=b= 2",
        "--prompts",
        str(tmp_path / "p.txt"),
        "--json",
    ]
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *words, "--limit", "4"])
    assert caught.value.code == 5
    kept = [f"--prompts={tmp_path / 'p.txt'}", "--limit=4", "--json", "--set=a=1", "--set=b= 2", "--", "run.yaml"]
    assert seen == [(Layout(3), ["evaluate", *kept], dgpo_cli.launch.ENDING)]


def test_where_nothing_is_saved_a_lost_process_ends_the_others_soon() -> None:
    program = "import os, time; os.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(120)"
    started = time.monotonic()
    code = f"import sys; from dgpo_cli.launch import *; sys.exit(launch(Layout(2), [], ['-c', {program!r}], 0.5))"
    ended = run(sys.executable, "-c", code)
    assert (ended.returncode, ended.stderr) == (
        1,
        "process 1 of 2 was terminated by SIGKILL, possibly because the system ran out of memory\n",
    )
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_mistake_of_one_process_ends_all_and_is_reported_once(tmp_path: Path) -> None:
    program = (
        "import os, sys, dgpo_core.training.memory as memory; from dgpo_cli import child; from dgpo_kit.toy import *;"
        "from dgpo_core.plugins.registry import get_registry; from dgpo_core.errors import UserError\n"
        "def broken(*_): raise UserError('the lamp is broken')\n"
        "if os.environ['RANK'] == '1': memory.decoded_media = broken\n"
        "get_registry().register(plugin, distribution='toy'); child.main(sys.argv[1:])"
    )
    command = ["sample", str(write(tmp_path)), "--prompt", "x", "--micro-batch", "1", "--output", str(tmp_path / "out")]
    code = f"import sys; from dgpo_cli.launch import *; sys.exit(launch(Layout(2), {command!r}, ['-c', {program!r}]))"
    ended = run(sys.executable, "-c", code)
    assert ended.returncode == 2
    assert ended.stdout + ended.stderr == "last output of process 1:\n  the lamp is broken\n"
    assert not (tmp_path / "out").exists()


def test_a_mistake_in_the_run_file_is_reported_before_any_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dgpo_cli.launch, "launch", None)
    (tmp_path / "run.yaml").write_text("run: {name: x, iterations: none}\n")
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "run.yaml"), "--processes", "2"])
    assert caught.value.code == 2
    assert "run.iterations" in capsys.readouterr().err


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    directory = tmp_path_factory.mktemp("alone")
    made = Registry()
    made.register(plugin, distribution="toy")
    assert Trainer(load_run_config(write(directory), registry=made), made).train() == "finished"
    return weights(directory / "toy")


def torchrun(file: Path) -> subprocess.CompletedProcess[str]:
    options = ["--standalone", "--nproc-per-node", "2"]
    return run(sys.executable, "-m", "torch.distributed.run", *options, CHILD, "train", str(file))


@pytest.mark.parametrize("launcher", [launched, pytest.param(torchrun, marks=pytest.mark.slow)])
def test_every_launcher(launcher: Launcher, alone: dict[str, torch.Tensor], tmp_path: Path) -> None:
    ended = launcher(write(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("[3/3]") == 1, "one voice"
    assert "on cpu, 2 processes" in ended.stderr
    found = weights(tmp_path / "toy")
    assert max(float((found[name] - alone[name]).abs().max()) for name in alone) < 1e-5


@pytest.mark.slow
def test_accelerate_launch_on_cpus_is_refused_rather_than_run_by_one(tmp_path: Path) -> None:
    ended = run(
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", CHILD, "train", str(write(tmp_path)),
    )  # fmt: skip
    assert ended.returncode != 0
    assert "was asked for 2 processes but started only one" in ended.stderr
    assert not (tmp_path / "toy").exists()


def test_a_mistake_is_reported_once(tmp_path: Path) -> None:
    file = write(tmp_path, backbone={"checkpoint": "missing"})
    ended = launched(file)
    assert ended.returncode == 2
    assert (ended.stdout + ended.stderr).count("missing: no such directory") == 1
    assert not (tmp_path / "toy").exists()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("rank", "resumed"), [("1", False), pytest.param("0", True, marks=SLOW), pytest.param("1", True, marks=SLOW)]
)
def test_a_killed_process_ends_the_run_with_the_reason(rank: str, resumed: bool, tmp_path: Path) -> None:
    file = write(tmp_path)
    ended = launched(file, DGPO_TEST_END=f"{rank} 1 kill")
    assert ended.returncode == 1
    assert f"process {rank} of 2 was terminated by SIGKILL" in ended.stderr
    assert "Traceback" not in ended.stderr
    if rank == "1":
        assert "the state after iteration 1 is saved; continue with --resume" in ended.stderr
    if resumed:
        again = launched(file, "--resume")
        assert again.returncode == 0, again.stderr
        assert len((tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_what_a_silent_process_said_last_is_shown(tmp_path: Path) -> None:
    ended = launched(write(tmp_path), DGPO_TEST_END="1 1 raise")
    assert ended.returncode == 1
    assert "last output of process 1:" in ended.stderr
    assert "RuntimeError: a bug of this process alone" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "group", "code"), [(signal.SIGTERM, False, 75), (signal.SIGINT, True, 0)])
def test_what_asks_for_a_stop_saves_and_stops_all(number: int, group: bool, code: int, tmp_path: Path) -> None:
    """To the launcher, or as a terminal sends it to its process group: each process hears of it once."""
    file = write(tmp_path, iterations=3000, evaluation={"every": 0}, checkpoints={"every": 1000})
    call = f"launch(Layout(2), ['train', sys.argv[1]], [{CHILD!r}])"
    program = f"import sys; from dgpo_cli.launch import *;sys.exit({call})"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip
    log = tmp_path / "toy" / "metrics.jsonl"
    for _ in range(600):
        if log.exists() and log.stat().st_size:
            break
        time.sleep(0.1)
    (os.killpg if group else os.kill)(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "last output" not in output
    done = len(log.read_text().splitlines())
    assert f"stopped after iteration {done}; continue with --resume" in output
    saved = json.loads((sorted((tmp_path / "toy" / "checkpoints").iterdir())[-1] / "manifest.json").read_text())
    assert saved["iteration"] == done < 3000


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_dry_run_of_two_processes_goes_through_an_update(tmp_path: Path, sharded: bool, train: str) -> None:
    """One voice, nothing written; the groups are sharded across the processes, whose micro-batches are whole."""
    backbone = {"train": train} | ({"lora": {"rank": 4, "alpha": 4}} if train == "lora" else {})
    data = run_data(tmp_path, run={"shard": sharded, "process_timeout": 60}, optimizer={"micro_batch": 3, "updates": 2})
    data["backbone"] = {"use": "toy", "checkpoint": "toy"} | backbone
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(data))
    done = launched(file, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("dry run passed; nothing was written") == 1
    assert "device: cpu, 2 processes\n" in done.stdout
    assert re.search(r"^peak memory, update: \d+\.\d\d GiB on cpu, micro-batches of 3$", done.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]
