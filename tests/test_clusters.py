"""The files of examples/clusters: what the job script does with each end of a run, and what the image installs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dgpo_cli.launch import PREEMPTED

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "examples" / "clusters"


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Programs that stand in for those of a cluster, and write down how they were called."""
    programs = {
        "srun": 'shift; for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do SLURM_NODEID=$node "$@"; done',
        "scontrol": f'echo "scontrol $*" >> {tmp_path}/calls; if [ "$1" = show ]; then echo first; echo second; fi',
        "dgpo": f'echo "dgpo $*" >> {tmp_path}/calls; exit $ENDS',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submitted(cluster: Path, *arguments: str, ends: int = 0, nodes: int = 1) -> tuple[int, list[str]]:
    """(exit code of the job, calls of dgpo and scontrol)."""
    environment = os.environ | {
        "PATH": f"{cluster}:{os.environ['PATH']}", "ENDS": str(ends), "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "123456", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip
    script = CLUSTERS / "slurm.sh"
    done = subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    calls = cluster / "calls"
    return done.returncode, calls.read_text().splitlines() if calls.exists() else []


def test_a_job_runs_the_command_that_starts_or_resumes(cluster: Path) -> None:
    code, calls = submitted(cluster, "my run.yaml", "--set", "run.name=a b")
    assert code == 0
    assert calls[1:] == ["dgpo train my run.yaml --resume auto --processes 8 --set run.name=a b"]


def test_each_machine_has_its_rank_and_all_one_address(cluster: Path) -> None:
    _, calls = submitted(cluster, "run.yaml", nodes=2)
    start = "dgpo train run.yaml --resume auto --processes 8 --machines 2 --address first:23456"
    assert calls[1:] == [f"{start} --machine-rank {rank}" for rank in (0, 1)]


@pytest.mark.parametrize("ends", [0, 1, 2, PREEMPTED, 130])
def test_only_a_preempted_run_is_queued_again(cluster: Path, ends: int) -> None:
    code, calls = submitted(cluster, "run.yaml", ends=ends)
    assert code == ends
    assert ("scontrol requeue 123456" in calls) == (ends == PREEMPTED)


def test_a_job_without_a_run_file_says_what_to_give(cluster: Path) -> None:
    code, calls = submitted(cluster)
    assert code != 0
    assert calls == []


def test_the_signal_that_slurm_sends_is_one_that_stops_a_run() -> None:
    from dgpo_core.system.stopping import stops_a_run

    (sent,) = re.findall(r"#SBATCH --signal=(\w+)@\d+", (CLUSTERS / "slurm.sh").read_text())
    assert f"SIG{sent}" in [number.name for number in stops_a_run()]


def test_the_kubernetes_job_starts_a_preempted_run_again_and_a_wrong_one_not() -> None:
    job = yaml.safe_load((CLUSTERS / "kubernetes.yaml").read_text())["spec"]
    rules = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", [])
    }
    assert rules == {2: "FailJob", PREEMPTED: "Ignore"}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"][:2]} == {
        container["name"]
    }
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    command, file, *options = container["args"]
    assert (command, options[:2]) == ("train", ["--resume", "auto"])
    assert (ROOT / file.removeprefix("/opt/dgpo/")).is_file()


def test_the_image_runs_the_script_that_is_tested() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    assert re.match(r"(#.*\n)+ARG CUDA=[\d.]+\nFROM nvidia/cuda:\$\{CUDA\}-base-ubuntu", text)
    (script, place) = re.findall(r"^RUN bash /opt/dgpo/(\S+) (\S+)", text, re.MULTILINE)[0]
    assert (ROOT / script) == CLUSTERS / "install.sh"
    assert f"ENV PATH={place}/bin:$PATH" in text


@pytest.mark.slow
@pytest.mark.skipif(
    "DGPO_TEST_INSTALL" not in os.environ,
    reason="DGPO_TEST_INSTALL is not set: it installs all anew, in minutes",
)
def test_what_the_image_installs_works_without_the_checkout(tmp_path: Path) -> None:
    """The steps of the Dockerfile, as far as they need no container: copy, install, run elsewhere."""
    source = tmp_path / "opt" / "dgpo"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "DGPO_"))}
    environment = kept | {"PYTHON": sys.executable}
    place = tmp_path / "venv"
    install = ["bash", str(source / "examples/clusters/install.sh"), str(place)]
    done = subprocess.run(install, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    (tmp_path / "work").mkdir()
    command = [
        str(place / "bin" / "dgpo"), "train", str(source / "examples/quickstart.yaml"), "--resume", "auto",
        *("--set", "run.iterations=1", "--set", "rollout.groups=2", "--set", "evaluation.prompts=2"),
    ]  # fmt: skip
    shutil.rmtree(source / "dgpo_core")
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "runs" / "quickstart" / "checkpoints" / "000001").is_dir()
