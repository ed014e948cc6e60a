"""Runs with a judge: the same for any split, repeated by the journal, ended by a judge that refuses everything."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.errors import RewardUnusable
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_judge.demo_server import answer_to, send
from dgpo_kit.fixtures import ToyRun
from dgpo_kit.toy import ToyPlugin, run_data
from dgpo_schemas.run import RunConfig

from .conftest import Playing, status

Play = Callable[..., Playing]
CHILD = Path(__file__).parents[3] / "tests/integration/child.py"


def rewards(server: Playing, **options: Any) -> list[dict[str, Any]]:
    return [
        {"use": "judge", "options": {"urls": [server.url], **options}},
        {"use": "judge-pairs", "options": {"urls": [server.url], "opponents": 2, **options}},
    ]


def metrics(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def configured(directory: Path, server: Playing, **changes: Any) -> dict[str, Any]:
    return run_data(
        directory,
        rewards=rewards(server),
        evaluation={"every": 2, "images": 0, "prompts": 2, "samples_per_prompt": 2},
        **changes,
    )


def trained(data: dict[str, Any], resume: Any = False, callbacks: tuple[Callback, ...] = ()) -> Path:
    registry = Registry()
    registry.register(ToyPlugin(reward="toy"), distribution="toy")
    Trainer(RunConfig.model_validate(data), registry, callbacks=callbacks).train(resume=resume)
    return Path(data["run"]["output"]) / data["run"]["name"]


def test_any_micro_batch_gives_the_same_run(play: Play, tmp_path: Path) -> None:
    server = play()
    runs = []
    for size in (3, 16):
        run = {"name": f"of-{size}", "iterations": 2}
        runs.append(trained(configured(tmp_path, server, run=run, rollout={"micro_batch": size})))
    rows = ("reward", "rewards", "missing_rewards", "zero_variance_groups")
    first = [{row: metrics(run)[0][row] for row in rows} for run in runs]
    assert first[0] == first[1], "later ones differ by the rounding of other sums in the updates"
    assert metrics(runs[0])[0]["missing_rewards"] == 0
    about = json.loads((runs[0] / "rewards" / "judge" / "judge.json").read_text())
    assert about["model"] == "demo-judge"
    costs = [json.loads(line)["costs"] for line in (runs[0] / "timings.jsonl").read_text().splitlines()]
    assert costs[0]["judge"]["requests"] == 16 + 4, "of the base model's evaluation and of the first iteration"
    assert costs[0]["judge-pairs"]["requests"] == 4 * 4 * 2 + 2 * 2
    assert costs[1]["judge"]["p95_seconds"] > 0


@pytest.mark.slow
def test_two_processes_give_the_same_run(play: Play, tmp_path: Path) -> None:
    server = play()
    one = trained(configured(tmp_path, server, run={"name": "one", "iterations": 2}, rollout={"micro_batch": 3}))
    data = configured(tmp_path, server, run={"name": "two", "iterations": 2}, rollout={"micro_batch": 3})
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(data))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, str(CHILD), "train", str(tmp_path / "two.yaml")],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [process.wait(300) for process in processes] == [0, 0]
    rows = ("reward", "rewards", "missing_rewards")
    first, second = metrics(one)[0], metrics(tmp_path / "two")[0]
    assert {row: first[row] for row in rows} == {row: second[row] for row in rows}
    timings = json.loads((tmp_path / "two" / "timings.jsonl").read_text().splitlines()[0])
    assert timings["costs"]["judge"]["requests"] == 16 + 4, "summed over the processes; 4 are of the evaluation"


class Killed(BaseException):
    """Ends a run as a signal would: nothing is saved."""


class Killing(Callback):
    """Kills a run in the middle of an iteration's log."""

    def on_metrics(self, metrics: Any) -> None:
        if metrics.iteration == 3:
            raise Killed


def test_a_run_that_was_killed_repeats_itself(play: Play, tmp_path: Path) -> None:
    """The server never answers a question twice alike; the journal does."""
    rng = random.Random(0)

    def moody(handler: Any, request: Any) -> None:
        data = answer_to(request)
        top = data["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        for one in top:
            one["logprob"] -= rng.random() * 0.3
        total = math.log(math.fsum(math.exp(one["logprob"]) for one in top))
        for one in top:
            one["logprob"] -= total
        send(handler, 200, json.dumps(data).encode())

    server = play(moody)
    data = configured(tmp_path, server, run={"iterations": 3}, checkpoints={"every": 50})
    with pytest.raises(Killed):
        trained(data, callbacks=(Killing(),))
    before = metrics(tmp_path / "toy")
    asked = len(server.requests)
    again = trained(data, resume="auto")
    assert metrics(again) == before
    assert len(before) == 3
    timing = json.loads((again / "timings.jsonl").read_text().splitlines()[-1])
    assert timing["costs"]["judge"]["from_journal"] == 16, "only the interrupted iteration was drawn again"
    assert timing["costs"]["judge-pairs"]["from_journal"] == 4 * 4 * 2
    assert len(server.requests) == asked + 2 * 4, "the last evaluation alone is new"
    other = trained({**data, "run": {**data["run"], "name": "other"}})
    assert metrics(other)[0] != before[0], "without the journal the run differs"


def test_a_judge_that_refuses_everything_ends_the_run(play: Play, tmp_path: Path) -> None:
    server = play(status(401))
    with pytest.raises(RewardUnusable, match=r"reward 'judge': the judge refuses every question: .*status 401"):
        trained({**configured(tmp_path, server), "rewards": rewards(server)[:1]})


def test_a_toy_run(play: Play, toy_run: ToyRun) -> None:
    found = toy_run(rewards=rewards(play(), max_pixels=4096), evaluation={"samples_per_prompt": 2})
    assert [line["missing_rewards"] for line in found.metrics] == [0, 0]
    assert found.metrics[0]["rewards"]["judge-pairs"]["mean"] == pytest.approx(0.5)
    assert found.metrics[0]["rewards"]["judge"]["subscores"]["answered"] == pytest.approx(1)
