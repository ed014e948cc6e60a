"""Runs with remote rewards: the results are bit-identical with each transport, even after crashes."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import dgpo_remote.worker.workers as workers
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig

Train = Callable[..., Path]


@pytest.fixture
def train(rewards: Registry, python_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`train("name", worker={...})`: a toy run's directory; the reward is `moody`."""
    monkeypatch.setattr(workers, "FIRST_WAIT", 0.001)

    def run(name: str, **place: Any) -> Path:
        if "worker" in place:
            environment = {"PYTHONPATH": python_path} | place["worker"].get("environment", {})
            place["worker"] = place["worker"] | {"environment": environment}
        data = run_data(
            tmp_path,
            run={"name": name},
            rollout={"micro_batch": place.pop("micro_batch", 5)},
            rewards=[{"use": place.pop("use", "moody"), "name": "reward", **place}],
            optimizer={"learning_rate": 0.05},
            evaluation={"every": 2, "images": 2, "model": "policy"},
        )
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(data))
        config = load_run_config(tmp_path / f"{name}.yaml", registry=rewards)
        assert Trainer(config, rewards).train() == "finished"
        return tmp_path / name

    return run


def left(path: Path) -> dict[str, bytes]:
    """Every file of a run except those that depend on times, processes and transports."""
    ignored = (".lock", "run.json", "timings.jsonl", "config.yaml", "clock.json")
    files = {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}
    return {name: data for name, data in files.items() if Path(name).name not in ignored}


def missing(path: Path) -> int:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["missing_rewards"] for line in lines)


# Some batches are lost twice, one three times, including batches of evaluations.
@pytest.mark.parametrize("dies", ["3 4 9", pytest.param("2 3 5 7 9 10 11 14 18 21", marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_again_and_again_loses_nothing(
    dies: str, train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = left(train("undisturbed"))
    assert {"metrics.jsonl", "evaluations.jsonl"} <= undisturbed.keys()
    assert any(name.endswith(".safetensors") for name in undisturbed)
    counter = tmp_path / "counter"
    environment = {"MOODY_COUNTER": str(counter), "MOODY_DIES": dies}
    killed = train("killed", worker={"environment": environment})
    assert caplog.text.count("by SIGKILL") == len(dies.split())
    assert counter.stat().st_size > int(dies.split()[-1])
    assert missing(killed) == 0
    assert left(killed) == undisturbed


def test_a_service_gives_the_same_run(train: Train, serve: Callable[..., Any]) -> None:
    served = train("served", service={"urls": [serve("moody").url, serve("moody").url]})
    assert left(served) == left(train("here"))


def test_a_worker_that_always_dies_stops_the_run(
    train: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {"MOODY_COUNTER": str(tmp_path / "counter"), "MOODY_DIES": " ".join(map(str, range(2, 100)))}
    caplog.set_level(logging.WARNING)
    with pytest.raises(RunStopped, match="missing"):  # in an evaluation, then in the first iteration
        train("lost", micro_batch=16, worker={"retries": 0, "environment": environment})
    assert "the worker was lost 1 times with this batch; the last one was" in caplog.text
    assert "SIGKILL" in caplog.text


def test_a_reward_served_by_the_command_gives_the_same_run(
    train: Train, command: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The server is another process, with the reward in a worker, and exits cleanly."""
    file = tmp_path / "reward.yaml"
    worker = {"environment": {}}
    file.write_text(
        yaml.safe_dump({"reward": {"use": "moody", "worker": worker}, "port": 0, "device": "cpu", "threads": 1})
    )
    process = command("serve", file)
    assert process.stderr is not None
    lines = [process.stderr.readline(), process.stderr.readline()]
    assert lines[0].startswith("loading moody; listening at http://127.0.0.1:")
    assert lines[1].startswith("ready: moody at "), lines
    served = train("served", service={"urls": [lines[1].split()[-1]]})
    assert left(served) == left(train("here"))
    process.send_signal(signal.SIGTERM)
    assert process.stderr.read() == "stopping: 0 requests in progress\n"
    assert process.wait(20) == 0


@pytest.mark.parametrize("place", ["worker", "service"])
def test_a_remote_reward_declares_its_media(
    python_path: str, tmp_path: Path, serve: Callable[..., Any], rewards: Registry, place: str
) -> None:
    """A run that generates videos does not start with a reward for images."""
    where: dict[str, Any] = {"environment": {"PYTHONPATH": python_path}}
    if place == "service":
        where = {"urls": [serve("brightness").url]}
    data = run_data(tmp_path, backbone={"use": "film"}, rewards=[{"use": "brightness", place: where}])
    trainer = Trainer(RunConfig.model_validate(data), rewards)
    with pytest.raises(UserError) as caught:
        trainer.train()
    assert str(caught.value) == (
        "rewards.0.use: brightness scores images, but the backbone film generates videos; "
        "choose a reward that scores videos"
    )
    assert list(tmp_path.iterdir()) == []
