"""Several processes of one run: the same numbers as one, whatever the groups; nothing lost when one of them is."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dgpo_core.distributed.processes import Processes, cut, in_order, split_samples
from dgpo_core.storage.checkpoint import load
from dgpo_kit.toy import run_data

DRIVER = Path(__file__).with_name("driver.py")
KILLED = -signal.SIGKILL
PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h
PATIENT = 600
"""Seconds: who waits for a process that is gone until they are over is ended by the driver long before."""
_SIZED = {"use": "toy-sizes", "options": {"sizes": [[8, 8], [16, 8], [8, 24]]}}
SIZES: dict[str, Any] = {"prompts": {"train": _SIZED, "heldout": _SIZED}}
DOUBLE = {"backbone": {"use": "toy", "checkpoint": "toy", "lora": {"rank": 4, "alpha": 4}, "options": {"double": True}}}


def environment(rank: int, count: int, port: int, machines: int = 1) -> dict[str, str]:
    local = count // machines
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank % local), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Driver:
    """Speaks to driver.py, which forks processes that have imported everything."""

    def __init__(self, *imported: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), *imported], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def train(
        self,
        run: Run,
        count: int,
        *options: str,
        at: tuple[str, int] | None = None,
        do: str = "kill",
        rank: int = 0,
        machines: int = 1,
    ) -> list[dict[str, Any]]:
        """`dgpo train` in `count` processes, as on so many machines; something happens in the process `rank`."""
        return self.run(["train", str(run.file), *options], count, at=at, do=do, rank=rank, machines=machines)

    def run(
        self,
        arguments: Sequence[str],
        count: int,
        *,
        at: tuple[str, int] | None = None,
        do: str = "kill",
        rank: int = 0,
        machines: int = 1,
    ) -> list[dict[str, Any]]:
        """The same of any command."""
        port = free_port()
        requests = [
            {
                "arguments": list(arguments),
                "environment": environment(i, count, port, machines) if count > 1 else {},
                "at": at if i == rank else None,
                "do": do,
            }
            for i in range(count)
        ]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"together": requests}) + "\n")
        self.process.stdin.flush()
        ended: list[dict[str, Any]] = json.loads(self.process.stdout.readline())["ended"]
        return ended

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


class Run:
    """A run file, and what a run of it leaves behind."""

    def __init__(self, directory: Path, name: str = "toy", **changes: Any) -> None:
        sections: dict[str, Any] = {
            "run": {"iterations": 3, "name": name, "process_timeout": PATIENT},
            "rollout": {"steps": 2, "group_size": 4, "groups": 4, "micro_batch": 3},
            "optimizer": {"learning_rate": 0.01, "micro_batch": 3},
            "objective": {"kl": 0.02, "ema_rollouts_after": 2},
            "evaluation": {"every": 2, "prompts": 5, "samples_per_prompt": 3, "images": 3, "model": "policy",
                           "many_step": {"steps": 4, "prompts": 2}},
        }  # fmt: skip
        for section, values in changes.items():
            sections[section] = sections.get(section, {}) | values if isinstance(values, dict) else values
        self.path = directory / name
        self.file = directory / f"{name}.yaml"
        data = run_data(directory, **sections)
        data["backbone"] = sections.get("backbone", data["backbone"])
        self.file.write_text(yaml.safe_dump(data))

    def log(self, name: str) -> list[dict[str, Any]]:
        file = self.path / f"{name}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments of the newest checkpoint."""
        newest = load(sorted((self.path / "checkpoints").iterdir())[-1])
        return newest.weights | {f"moments of {name}": tensor for name, tensor in newest.optimizer.items()}

    def images(self) -> list[np.ndarray]:
        """Every image that was written."""
        return [
            np.asarray(Image.open(io.BytesIO(f.read_bytes()))).astype(int) for f in sorted(self.path.rglob("*.png"))
        ]

    def files(self) -> dict[str, bytes]:
        """What is the same byte for byte however often a run was stopped."""
        newest = sorted((self.path / "checkpoints").iterdir())[-1]
        saved = [file for file in sorted(newest.iterdir()) if file.name != "clock.json"]
        named = [self.path / "metrics.jsonl", self.path / "evaluations.jsonl", *saved]
        return {str(file.relative_to(self.path)): file.read_bytes() for file in named}


@pytest.fixture(scope="module")
def whole(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes that nothing happens to."""
    run = Run(tmp_path_factory.mktemp("whole"), "whole")
    assert_all_well(driver.train(run, 2))
    return run


def assert_all_well(ended: list[dict[str, Any]], status: int = 0) -> None:
    for one in ended:
        assert one["status"] == status, one["output"]


def difference(found: Any, wanted: Any, where: str = "") -> float:
    """Largest difference of numbers of two records of one shape, relative to numbers above 1."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        return max((difference(found[k], wanted[k], f"{where}.{k}") for k in wanted), default=0.0)
    if isinstance(wanted, list):
        assert len(found) == len(wanted), where
        return max((difference(a, b, where) for a, b in zip(found, wanted, strict=True)), default=0.0)
    if isinstance(wanted, float) and isinstance(found, float):
        return abs(found - wanted) / max(1.0, abs(wanted))
    assert found == wanted, where
    return 0.0


# -- who does what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("groups", "members", "updates"), [(4, 4, 1), (4, 4, 2), (3, 5, 1), (1, 2, 1), (24, 24, 4)])
def test_every_sample_has_one_process_and_every_update_all_processes(
    groups: int, members: int, updates: int, count: int
) -> None:
    parts = split_samples(groups, members, updates, count)
    assert sorted(i for part in parts for i in part) == list(range(groups * members))
    size = groups * members // updates
    for update in range(updates):
        here = [sum(update * size <= i < (update + 1) * size for i in part) for part in parts]
        assert max(here) - min(here) <= 1
        owners = [{r for r, part in enumerate(parts) if set(part) & set(range(g * members, (g + 1) * members))}
                  for g in range(update * groups // updates, (update + 1) * groups // updates)]  # fmt: skip
        sharded = sum(len(owner) > 1 for owner in owners)
        assert sharded <= count - 1
        assert sharded == 0 or (groups // updates) % count, "groups that can stay whole do"


def test_components_in_order() -> None:
    assert [list(cut(7, r, 3)) for r in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    rows = torch.tensor([[0.0], [3.0], [1.0], [2.0]])
    assert torch.cat(in_order(list(rows), [[0, 3], [1, 2]])).tolist() == [0.0, 1.0, 2.0, 3.0]


def test_one_process_needs_no_group() -> None:
    alone = Processes()
    assert alone.main
    assert alone.any(True) is True
    assert alone.all_gather_object({"a": 1}) == [{"a": 1}]
    assert alone.broadcast_object((1, 2)) == (1, 2)
    rows = torch.ones(2, 3)
    assert alone.all_gather_tensors([rows])[0] is rows
    assert alone.all_gather_tensors([]) == []
    assert alone.all_reduce_sum([rows])[0] is rows
    alone.leave()


# -- the same numbers -------------------------------------------------------------------------------------------------

_HARD = {"use": "hard-toy", "options": {"count": 5, "sizes": [[8, 8], [16, 8]]}}
SETTINGS: dict[str, dict[str, Any]] = {
    "whole groups": {},
    "small micro-batches": {"rollout": {"micro_batch": 1}, "optimizer": {"micro_batch": 1, "learning_rate": 0.01}},
    "groups of five": {"rollout": {"group_size": 5, "groups": 3}},
    "one group": {"rollout": {"group_size": 7, "groups": 1}},
    "two updates": {"optimizer": {"updates": 2, "micro_batch": 8, "learning_rate": 0.01}},
    "two passes of two updates": {
        "rollout": {"group_size": 5, "groups": 4},
        "optimizer": {"updates": 2, "passes": 2, "micro_batch": 8, "learning_rate": 0.01},
        "objective": {"clip": 1e-3, "kl": 0.02, "ema_rollouts_after": 0,
                      "ema_fast": {"max_decay": 0.5, "ramp": 0.1, "per": "iteration"}},
    },
    "all weights": {"backbone": {"use": "toy", "checkpoint": "toy", "train": "full", "options": {"double": True}}},
    "moving reference": {"objective": {"reference": "ema_fast", "kl": 0.0, "ema_rollouts_after": None}},
    "guided rollouts": {"rollout": {"guidance": 2.0}},
    "a guided reference": {"objective": {"kl": 0.02, "kl_cfg": 2.0, "ema_rollouts_after": None}},
    "missing scores": {
        "rewards": [{"use": "brightness", "options": {"fail": "dark"}}], "scoring": {"max_missing": 0.99},
    },
    "rewards that compare": {
        "rollout": {"group_size": 5, "groups": 3, "micro_batch": 2},
        "rewards": [{"use": "win-rate", "options": {"opponents": 2}}, {"use": "brightness", "weight": 0.5}],
    },
    "ranks of rewards": {
        "rollout": {"group_size": 5, "groups": 3, "micro_batch": 2},
        "rewards": [{"use": "brightness", "transform": "rank"}, {"use": "win-rate", "transform": "rank"}],
    },
    "rewards on one process": {
        "run": {"reward_ranks": 1},
        "rollout": {"group_size": 5, "groups": 3, "micro_batch": 2},
        "rewards": [{"use": "win-rate", "options": {"opponents": 2}}, {"use": "brightness", "weight": 0.5}],
    },
    "missing scores of rewards on two processes": {
        "run": {"reward_ranks": 2},
        "rewards": [{"use": "brightness", "options": {"fail": "dark"}}], "scoring": {"max_missing": 0.99},
    },
    "sources": {
        "rollout": {"group_size": 5, "groups": 4, "micro_batch": 3},
        "optimizer": {"updates": 2, "micro_batch": 3, "learning_rate": 0.01},
        "advantages": {"std": "batch"},
        "prompts": {split: [
            {"source": "many", "use": "toy", "weight": 2},
            {"source": "few", "use": "toy", "options": {"count": 2}, "rewards": ["brightness"]},
        ] for split in ("train", "heldout")},
        "rewards": [{"use": "brightness"}, {"use": "win-rate"}],
    },
    "paths": {
        "rollout": {"sampler": "flow-sde", "steps": 4, "group_size": 5, "groups": 3},
        "timesteps": {"use": "sampler-steps", "count": 2, "t_min": 0.1},
        "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.02},
        "evaluation": {"sampler": "flow-euler"},
    },
    "candidates": {
        "rollout": {"explore": {"candidates": 7, "steps": 1}, "group_size": 5, "groups": 4, "micro_batch": 3},
        "optimizer": {"updates": 2, "micro_batch": 3, "learning_rate": 0.01},
        "rewards": [{"use": "win-rate", "options": {"opponents": 2}}, {"use": "brightness", "weight": 0.5}],
    },
    "candidates with rewards on one process": {
        "run": {"reward_ranks": 1},
        "rollout": {"explore": {"candidates": 7, "steps": 1, "best": 1}, "group_size": 5, "groups": 3},
        "rewards": [{"use": "win-rate", "options": {"opponents": 2}}, {"use": "brightness", "weight": 0.5}],
    },
    "several sizes": SIZES | {"rollout": {"group_size": 5, "groups": 3, "micro_batch": 4}},
    "ragged rows of a model that predicts noise": {
        "backbone": DOUBLE["backbone"] | {"use": "hard-toy"},
        "prompts": {"train": _HARD, "heldout": _HARD},
        "rollout": {"group_size": 5, "groups": 3, "micro_batch": 4, "shift": "auto", "guidance": 2.5},
        "timesteps": {"count": 2, "t_min": 0.1},
    },
    "weights that are measured": {
        "timesteps": {"use": "inverse-dsm", "t_min": 0.1, "count": 2, "options": {"every": 2, "samples": 3}},
    },
    "a t_min that is measured": {
        "timesteps": {"use": "disagreement-t-min", "t_min": 0.1, "count": 2, "options": {"every": 2, "samples": 3}},
    },
}  # fmt: skip


QUICK = (
    "groups of five",
    "rewards that compare",
    "ranks of rewards",
    "rewards on one process",
    "two passes of two updates",
    "missing scores",
    "candidates",
    "paths",
    "several sizes",
    "ragged rows of a model that predicts noise",
)
"""What `make test` tries, with three processes alone."""


@pytest.mark.parametrize(
    ("setting", "counts"),
    [(setting, (3,)) for setting in QUICK]
    + [pytest.param(setting, (2, 3), marks=pytest.mark.slow) for setting in SETTINGS],
)
def test_the_same_for_any_number_of_processes(
    setting: str, counts: tuple[int, ...], driver: Driver, tmp_path: Path
) -> None:
    """In float64, so that a mistake cannot hide behind rounding."""
    changes = {**SETTINGS[setting]}
    changes.setdefault("backbone", DOUBLE["backbone"])
    one = Run(tmp_path, "one", **changes)
    assert_all_well(driver.train(one, 1))
    for count in counts:
        several = Run(tmp_path, f"p{count}", **changes)
        assert_all_well(driver.train(several, count))
        wanted, found = one.tensors(), several.tensors()
        assert found.keys() == wanted.keys()
        largest = max(float((found[name] - wanted[name]).abs().max()) for name in wanted)
        assert largest < 1e-9, f"{count} processes: weights differ by {largest}"
        for log in ("metrics", "evaluations"):
            assert difference(several.log(log), one.log(log)) < 1e-6, "records are made of float32 media"
        assert sorted(f.name for f in several.path.rglob("*.png")) == sorted(f.name for f in one.path.rglob("*.png"))
        for mine, theirs in zip(several.images(), one.images(), strict=True):
            assert mine.shape == theirs.shape
            assert abs(mine - theirs).max() <= 1, "of 255, by the rounding of float32 media"
    moved = max(float(t.abs().max()) for n, t in one.tensors().items() if (n.startswith("policy/") and "up" in n) or
                n.startswith("moments"))  # fmt: skip
    assert moved > 1e-3, "there must be something to compare"


def test_in_float32_within_the_rounding_of_sums(driver: Driver, tmp_path: Path) -> None:
    one = Run(tmp_path, "one")
    assert_all_well(driver.train(one, 1))
    for count in (2, 3):
        several = Run(tmp_path, f"p{count}")
        assert_all_well(driver.train(several, count))
        wanted, found = one.tensors(), several.tensors()
        assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
        assert difference(several.log("metrics"), one.log("metrics")) < 1e-5


def test_more_processes_than_samples(driver: Driver, tmp_path: Path) -> None:
    """Some have nothing to draw; they take part all the same."""
    changes = DOUBLE | {
        "rollout": {"group_size": 2, "groups": 1},
        "evaluation": {"prompts": 1, "samples_per_prompt": 1},
    }
    one, several = Run(tmp_path, "one", **changes), Run(tmp_path, "several", **changes)
    assert_all_well(driver.train(one, 1))
    assert_all_well(driver.train(several, 4))
    wanted, found = one.tensors(), several.tensors()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-9
    assert difference(several.log("evaluations"), one.log("evaluations")) < 1e-6


# -- how few words they exchange --------------------------------------------------------------------------------------


def test_one_reduction_of_statistics_and_one_of_gradients_an_update(driver: Driver, tmp_path: Path) -> None:
    """Of an iteration with two updates, of whole groups and of groups that are split."""
    for groups, members, expected in ((4, 4, 1), (3, 5, 2)):
        run = Run(
            tmp_path, f"g{groups}", rollout={"groups": groups, "group_size": members},
            optimizer={"updates": 2 if groups == 4 else 1, "learning_rate": 0.01, "micro_batch": 1},
        )  # fmt: skip
        ended = driver.train(run, 2, "--max-iterations", "3", at=("all_reduce on the device", 10**9))
        assert_all_well(ended)
        updates = 3 * (2 if groups == 4 else 1)
        assert ended[0]["counts"]["all_reduce on the device"] == updates * expected


# -- the end of one is the end of all, and nothing is lost ------------------------------------------------------------

MOMENTS = [("velocity", 3), ("velocity", 40), ("score", 3), ("evaluate", 1), ("evaluate", 2), ("host", 5), ("host", 30)]
STOPS = [("velocity", 3), ("velocity", 20), ("score", 3), ("evaluate", 1), ("host", 20)]


def few(all_of_them: list[Any], *quick: Any) -> list[Any]:
    """Parameters, most of them for the slow tests."""
    assert all(one in all_of_them for one in quick)
    return [
        pytest.param(*one, id=" ".join(map(str, one)), marks=() if one in quick else pytest.mark.slow)
        for one in all_of_them
    ]


@pytest.mark.parametrize(
    ("rank", "at"), few([(rank, at) for rank in (0, 1) for at in MOMENTS], (0, ("velocity", 40)), (1, ("evaluate", 2)))
)
def test_a_lost_process_ends_the_run_and_a_resume_goes_on(
    rank: int, at: tuple[str, int], driver: Driver, whole: Run, tmp_path: Path
) -> None:
    """Resumed with as many processes, it comes to the same end byte for byte."""
    run = Run(tmp_path, "run")
    ended = driver.train(run, 2, at=at, rank=rank)
    assert ended[rank]["status"] == KILLED
    other = ended[1 - rank]
    assert other["status"] == 3, other["output"]
    assert "Traceback" not in other["output"]
    assert "timed out waiting for another process" in other["output"]
    if rank == 1:  # the main process saves what it has
        assert (f"the state after iteration {len(run.log('metrics'))} is saved" in other["output"]
                or "nothing is saved yet" in other["output"])  # fmt: skip
    options = ["--resume"] if any((run.path / "checkpoints").glob("0*")) else []
    assert_all_well(driver.train(run, 2, *options))
    assert run.files() == whole.files()


def test_rewards_on_one_process_score_for_all(driver: Driver, whole: Run, tmp_path: Path) -> None:
    """Only it calls them, and every file is the same byte for byte as when each process has its own."""
    run = Run(tmp_path, "run", run={"reward_ranks": 1})
    ended = driver.train(run, 2)
    assert_all_well(ended)
    assert [one["counts"].get("score", 0) > 0 for one in ended] == [True, False]
    assert run.files() == whole.files()


@pytest.mark.parametrize(("rank", "at"), few([(0, ("score", 3)), (1, ("velocity", 40))], (0, ("score", 3))))
def test_a_lost_process_with_the_rewards_or_without(
    rank: int, at: tuple[str, int], driver: Driver, whole: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path, "run", run={"reward_ranks": 1})
    ended = driver.train(run, 2, at=at, rank=rank)
    assert ended[rank]["status"] == KILLED
    other = ended[1 - rank]
    assert other["status"] == 3, other["output"]
    assert "timed out waiting for another process" in other["output"]
    options = ["--resume"] if any((run.path / "checkpoints").glob("0*")) else []
    assert_all_well(driver.train(run, 2, *options))
    assert run.files() == whole.files()


def test_several_sizes_and_a_lost_process(driver: Driver, tmp_path: Path) -> None:
    whole, run = Run(tmp_path, "whole", **SIZES), Run(tmp_path, "run", **SIZES)
    assert_all_well(driver.train(whole, 2))
    ended = driver.train(run, 2, at=("velocity", 60), rank=1)
    assert ended[1]["status"] == KILLED
    assert_all_well(driver.train(run, 2, "--resume"))
    assert run.files() == whole.files()


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["rewards that compare", "sources"])
def test_groups_that_travel_are_the_same_after_a_kill(setting: str, driver: Driver, tmp_path: Path) -> None:
    changes = SETTINGS[setting]
    whole, run = Run(tmp_path, "whole", **changes), Run(tmp_path, "run", **changes)
    assert_all_well(driver.train(whole, 2))
    ended = driver.train(run, 2, at=("velocity", 40), rank=1)
    assert ended[1]["status"] == KILLED
    assert_all_well(driver.train(run, 2, "--resume"))
    assert run.files() == whole.files()


def test_a_process_that_hangs_is_given_up(driver: Driver, tmp_path: Path) -> None:
    run = Run(tmp_path, run={"process_timeout": 2, "iterations": 3, "name": "toy"})
    ended = driver.train(run, 2, at=("velocity", 30), do="hang for 10 seconds", rank=1)
    assert ended[0]["status"] == 3
    assert "process 0 of 2 timed out waiting for another process" in ended[0]["output"]
    assert "continue with --resume" in ended[0]["output"]
    assert ended[1]["status"] == 3, "it finds the others gone"


@pytest.mark.parametrize(("rank", "at"), few([(rank, at) for rank in (0, 1) for at in STOPS], (1, ("velocity", 20))))
def test_a_stop_that_one_is_asked_for_stops_all(
    rank: int, at: tuple[str, int], driver: Driver, whole: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path, "run")
    ended = driver.train(run, 2, at=at, do="terminate", rank=rank)
    assert_all_well(ended, status=PREEMPTED)
    assert "continue with --resume" in ended[0]["output"]
    assert_all_well(driver.train(run, 2, "--resume"))
    assert run.files() == whole.files()


@pytest.mark.parametrize(("before", "after"), few([(1, 3), (2, 1), (3, 2)], (1, 3)))
def test_a_resume_with_another_number_of_processes(before: int, after: int, driver: Driver, tmp_path: Path) -> None:
    one, run = Run(tmp_path, "one", **DOUBLE), Run(tmp_path, "run", **DOUBLE)
    assert_all_well(driver.train(one, 1))
    assert_all_well(driver.train(run, before, "--max-iterations", "1"))
    assert_all_well(driver.train(run, after, "--resume"))
    wanted, found = one.tensors(), run.tensors()
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-9
    assert [line["iteration"] for line in run.log("metrics")] == [1, 2, 3]
    assert difference(run.log("evaluations"), one.log("evaluations")) < 1e-6


def test_processes_with_different_files_are_refused(driver: Driver, tmp_path: Path) -> None:
    run, other = Run(tmp_path, "run"), Run(tmp_path, "other")
    port = free_port()
    requests = [
        {"arguments": ["train", str(it.file)], "environment": environment(i, 2, port)}
        for i, it in enumerate((run, other))
    ]
    assert driver.process.stdin is not None
    assert driver.process.stdout is not None
    driver.process.stdin.write(json.dumps({"together": requests}) + "\n")
    driver.process.stdin.flush()
    ended = json.loads(driver.process.stdout.readline())["ended"]
    for one in ended:
        assert one["status"] == 2
        assert "has a different run file than process" in one["output"]


def test_a_mistake_that_only_the_main_process_sees(driver: Driver, tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert_all_well(driver.train(run, 2))
    ended = driver.train(run, 2)
    assert [one["status"] for one in ended] == [2, 3]
    assert "already contains a run" in ended[0]["output"]
    assert "Traceback" not in ended[0]["output"] + ended[1]["output"]
