"""A model that is sharded across processes (FSDP2) gives the numbers of a model that is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from dgpo_core.distributed.processes import Processes
from dgpo_core.distributed.sharding import shard
from dgpo_core.plugins.registry import get_registry
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_sd3.testing import make_tiny_checkpoint
from tests.integration.test_processes import (
    DOUBLE,
    PATIENT,
    PREEMPTED,
    SIZES,
    Driver,
    Run,
    assert_all_well,
    difference,
    few,
)

FULL = {"backbone": {"use": "toy", "checkpoint": "toy", "train": "full", "options": {"double": True}}}
SHARD = {"iterations": 3, "process_timeout": PATIENT, "shard": True}

SETTINGS: dict[str, dict[str, Any]] = {
    "an adapter": DOUBLE,
    "an adapter, groups of five": DOUBLE | {"rollout": {"group_size": 5, "groups": 3}},
    "all weights": FULL,
    "all weights, single samples": FULL | {
        "rollout": {"micro_batch": 1, "group_size": 5, "groups": 1},
        "optimizer": {"micro_batch": 1, "learning_rate": 0.01},
    },
    "all weights, two updates": FULL | {"optimizer": {"updates": 2, "micro_batch": 8, "learning_rate": 0.01}},
    "all weights, two passes": FULL | {
        "optimizer": {"passes": 2, "micro_batch": 8, "learning_rate": 0.01},
        "objective": {"clip": 1e-3, "kl": 0.02, "ema_fast": {"max_decay": 0.5, "ramp": 0.1, "per": "iteration"}},
    },
    "all weights, a moving reference": FULL | {
        "objective": {"reference": "ema_fast", "kl": 0.0, "ema_rollouts_after": None}
    },
    "all weights, more processes than samples": FULL | {
        "rollout": {"group_size": 2, "groups": 1}, "evaluation": {"prompts": 1, "samples_per_prompt": 1},
    },
    "all weights, several sizes": FULL | SIZES | {"rollout": {"group_size": 5, "groups": 3, "micro_batch": 4}},
    "all weights, a t_min that is measured": FULL | {
        "timesteps": {"use": "disagreement-t-min", "t_min": 0.1, "count": 2, "options": {"every": 2, "samples": 3}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver(
        "dgpo_core.distributed.sharding", "dgpo_sd3.backbone", "dgpo_core.lora", "diffusers:StableDiffusion3Pipeline",
        "diffusers:SD3Transformer2DModel", "diffusers:AutoencoderKL", "diffusers:FlowMatchEulerDiscreteScheduler",
        "transformers:CLIPTextModelWithProjection", "transformers:CLIPTokenizer", "peft:LoraConfig",
    )  # fmt: skip
    yield made
    made.close()


def assert_same(found: Run, wanted: Run) -> None:
    mine, theirs = found.tensors(), wanted.tensors()
    assert mine.keys() == theirs.keys()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    largest = max(float((mine[name] - theirs[name]).abs().max()) for name in theirs)
    assert largest < 1e-9, f"weights differ by {largest}"
    for log in ("metrics", "evaluations"):
        assert difference(found.log(log), wanted.log(log)) < 1e-6, "records are made of float32 media"


@pytest.mark.parametrize(
    ("setting", "counts"),
    [("an adapter, groups of five", (2,)), ("all weights, two updates", (3,))]
    + [pytest.param(setting, (2, 3), marks=pytest.mark.slow) for setting in SETTINGS],
)
def test_the_same_as_one_process(setting: str, counts: tuple[int, ...], driver: Driver, tmp_path: Path) -> None:
    changes = SETTINGS[setting]
    one = Run(tmp_path, "one", **changes)
    assert_all_well(driver.train(one, 1))
    assert max(abs(record["change_norm"]) for record in one.log("metrics")) > 1e-3, "there must be something to compare"
    for count in counts:
        several = Run(tmp_path, f"p{count}", **changes, run=SHARD | {"name": f"p{count}"})
        assert_all_well(driver.train(several, count))
        assert_same(several, one)


@pytest.mark.parametrize(
    ("train", "checkpointing"),
    [pytest.param("lora", True, marks=pytest.mark.slow), pytest.param("dora", True, marks=pytest.mark.slow),
     ("full", False)],
)  # fmt: skip
def test_a_network_with_blocks(train: str, checkpointing: bool, driver: Driver, tmp_path: Path) -> None:
    """SD3's, gathered block by block, in float32: up to the order of sums, of which AdamW makes steps."""
    backbone = {
        "use": "sd3", "checkpoint": str(make_tiny_checkpoint(tmp_path / "sd3")),
        "train": "full" if train == "full" else "lora",
        "gradient_checkpointing": checkpointing, "lora": {"rank": 4, "alpha": 8, "dora": train == "dora"},
    }  # fmt: skip
    if train == "full":
        del backbone["lora"]
    changes: dict[str, Any] = {
        "backbone": backbone,
        "rollout": {"steps": 2, "group_size": 3, "groups": 3, "micro_batch": 2, "resolution": 16, "guidance": 1.5},
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-3, "micro_batch": 2},
    }
    one = Run(tmp_path, "one", **changes)
    assert_all_well(driver.train(one, 1))
    two = Run(tmp_path, "two", **changes, run=SHARD | {"name": "two"})
    assert_all_well(driver.train(two, 2))
    wanted, found = one.tensors(), two.tensors()
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}
    assert max(float((found[name] - wanted[name]).abs().max()) for name in wanted) < 1e-5
    assert difference(two.log("metrics"), one.log("metrics")) < 1e-4
    assert max(record["change_norm"] for record in one.log("metrics")) > 1e-3


@pytest.mark.parametrize("train", ["lora", "full"])
def test_each_process_holds_its_share_and_an_adapter_is_whole(train: str, tmp_path: Path) -> None:
    backbone = {"use": "sd3", "checkpoint": str(make_tiny_checkpoint(tmp_path / "sd3")), "train": train}
    section = BackboneSection.model_validate(backbone)
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        made = get_registry().create("backbone", section, device=torch.device("cpu"))
        before = {name: p.numel() for name, p in made.module.named_parameters()}
        assert [type(b).__name__ for b in made.blocks()] == ["JointTransformerBlock"] * 2
        shard(made, torch.device("cpu"), Processes(0, 4))
        trained = made.trainable()
        for name, parameter in made.module.named_parameters():
            if train == "lora" and name in trained:
                assert not isinstance(parameter, DTensor)
            else:
                assert isinstance(parameter, DTensor)
        here = sum(p.to_local().numel() for p in made.module.parameters() if isinstance(p, DTensor))
        whole = sum(before[n] for n, p in made.module.named_parameters() if isinstance(p, DTensor))
        assert whole / 4 <= here < whole / 4 * 1.1, "rank 0 has the larger share of what does not divide"
        assert {name: p.numel() for name, p in made.module.named_parameters()} == before, "names and shapes stay"
    finally:
        dist.destroy_process_group()


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), few([(1, 2), (2, 1), (3, 2)], (2, 1)))
def test_a_resume_with_another_number_of_processes(before: int, after: int, driver: Driver, tmp_path: Path) -> None:
    one, run = Run(tmp_path, "one", **FULL), Run(tmp_path, "run", **FULL, run=SHARD | {"name": "run"})
    assert_all_well(driver.train(one, 1))
    assert_all_well(driver.train(run, before, "--max-iterations", "1"))
    assert_all_well(driver.train(run, after, "--resume"))
    assert_same(run, one)


@pytest.fixture(scope="module")
def whole(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two processes that nothing happens to."""
    run = Run(tmp_path_factory.mktemp("whole"), "whole", **FULL, run=SHARD)
    assert_all_well(driver.train(run, 2))
    return run


MOMENTS = [(0, ("velocity", 3)), (1, ("velocity", 30)), (0, ("score", 3)), (1, ("evaluate", 2)), (1, ("host", 60))]


@pytest.mark.parametrize(
    ("deed", "rank", "at"),
    few(
        [(deed, *moment) for deed in ("terminate", "kill") for moment in MOMENTS],
        ("terminate", 1, ("velocity", 30)),
        ("kill", 0, ("score", 3)),
    ),
)
def test_a_stop_or_a_loss_costs_nothing(
    deed: str, rank: int, at: tuple[str, int], driver: Driver, whole: Run, tmp_path: Path
) -> None:
    """Resumed with as many processes, it comes to the same end byte for byte."""
    run = Run(tmp_path, "run", **FULL, run=SHARD)
    ended = driver.train(run, 2, at=at, do=deed, rank=rank)
    if deed == "terminate":
        assert_all_well(ended, status=PREEMPTED)
        assert "continue with --resume" in ended[0]["output"]
    else:
        assert ended[1 - rank]["status"] == 3, ended[1 - rank]["output"]
    options = ["--resume"] if any((run.path / "checkpoints").glob("0*")) else []
    assert_all_well(driver.train(run, 2, *options))
    assert run.files() == whole.files()


@pytest.mark.slow
def test_an_update_that_destroys_sharded_weights_is_not_saved(driver: Driver, tmp_path: Path) -> None:
    """Each update multiplies them by a million."""
    run = Run(tmp_path, "run", **FULL, run=SHARD, optimizer={"updates": 4}, checkpoints={"every": 1})
    assert_all_well(driver.train(run, 2, "--max-iterations", "1"))
    wild = ["--set", "optimizer.learning_rate=1000", "--set", "optimizer.weight_decay=1000"]
    for ended in driver.train(run, 2, "--resume", *wild):
        assert ended["status"] == 1, ended["output"]
        assert "made weights that are not finite, or too large to compute with: they are not saved" in ended["output"]
    assert sorted(path.name for path in (run.path / "checkpoints").glob("0*"))[-1] == "000001"
    assert_all_well(driver.train(run, 2, "--resume"))


@pytest.mark.parametrize(("number", "key"), [(4, "rollout"), (14, "optimizer")])
def test_too_little_memory_is_reported_and_not_tried_again(
    number: int, key: str, driver: Driver, tmp_path: Path
) -> None:
    """The others cannot be told to begin anew: they are in the middle of the same pass."""
    run = Run(tmp_path, **FULL, run=SHARD, evaluation={"at_start": False, "every": 0})
    ended = driver.train(run, 2, at=("velocity", number), do="run out of memory", rank=1)
    assert ended[1]["status"] == 2, ended[1]["output"]
    said = " ".join(ended[1]["output"].split())
    assert f"{key}.micro_batch: the device runs out of memory" in said
    assert "cannot retry with fewer; set" in said
    assert ended[0]["status"] == 3, ended[0]["output"]


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("backbone.compile", {"backbone": DOUBLE["backbone"] | {"compile": True}}),
        ("rollout.merge_adapter", DOUBLE | {"rollout": {"merge_adapter": True}}),
        ("optimizer.bits", FULL | {"optimizer": {"bits": 8}}),
    ],
)
def test_what_does_not_go_with_it_is_refused(key: str, changes: Any, driver: Driver, tmp_path: Path) -> None:
    for one in driver.train(Run(tmp_path, **changes, run=SHARD), 2):
        assert one["status"] == 2
        assert key in one["output"]
        assert "run.shard" in one["output"]
