"""Whole runs of every family on its tiny checkpoint: training, kill and resume, processes, sharded weights, plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import plugin
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_schemas.run import RunConfig
from tests.families.proof import proofs
from tests.integration.test_processes import KILLED, PATIENT, Driver, Run, assert_all_well, difference

ELSEWHERE = ("sd3", "wan", "wan-i2v")
"""Families whose own packages test whole runs."""
FAMILIES = {name: proof for name, proof in proofs().items() if "," not in name and name not in ELSEWHERE}

IMPORTED = (
    "dgpo_core.distributed.sharding", "dgpo_core.lora", "dgpo_diffusers.backbone", "diffusers:AutoencoderKL",
    "diffusers:FluxPipeline", "diffusers:FluxTransformer2DModel", "diffusers:StableDiffusionXLPipeline",
    "diffusers:UNet2DConditionModel", "transformers:CLIPTextModel", "transformers:T5EncoderModel",
)  # fmt: skip
"""By the driver, once for all runs."""

MATRIX = ("flux", "sdxl")
"""Architectures of the whole matrix of processes, sharding, kill and resume; the others run in one process."""

each = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in MATRIX else pytest.mark.slow) for name in FAMILIES]
)
matrix = pytest.mark.parametrize("family", MATRIX)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny checkpoint, made once."""
    return cache(lambda family: FAMILIES[family].make(tmp_path_factory.mktemp("tiny") / family))


@pytest.fixture(scope="module")
def registry() -> Registry:
    found = Registry()
    found.register(plugin, distribution="toy")
    return found


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver(*IMPORTED)
    yield made
    made.close()


@pytest.fixture
def run(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Run]:
    """`run(family, name, backbone={...}, **sections)`: two iterations with guidance, of groups that two and three
    processes share unevenly. AdamW's epsilon is large, lest it make steps of roundings."""

    def make(family: str, name: str, backbone: dict[str, Any] | None = None, **run: Any) -> Run:
        proof = FAMILIES[family]
        options = {**proof.values, **proof.quick}
        use = {"use": proof.kind.layout.backbone, "checkpoint": str(checkpoint(family)), "options": options}
        rollout = {"steps": 2, "group_size": 3, "groups": 3, "micro_batch": 2, "resolution": 16, "guidance": 1.5}
        return Run(
            tmp_path,
            name,
            run={"name": name, "iterations": 2, "process_timeout": PATIENT, **run},
            backbone=use | ({"lora": {"rank": 4, "alpha": 8}} if backbone is None else backbone),
            rollout=rollout | dict(proof.rollout),
            **({"rewards": [{"use": "motion"}]} if proof.kind.media == "video" else {}),
            optimizer={"learning_rate": 1e-3, "epsilon": 1e-3, "micro_batch": 2},
            evaluation={"every": 2, "prompts": 2, "samples_per_prompt": 1, "images": 1, "many_step": None},
        )

    return make


def config(run: Run) -> RunConfig:
    return RunConfig.model_validate(yaml.safe_load(run.file.read_text()))


def assert_same(found: Run, wanted: Run) -> None:
    """Up to the order of float32 sums."""
    mine, theirs = found.tensors(), wanted.tensors()
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.items()}
    assert max(float((mine[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5
    assert difference(found.log("metrics"), wanted.log("metrics")) < 1e-4
    assert max(record["change_norm"] for record in wanted.log("metrics")) > 1e-3, "there must be something to compare"


@each
def test_an_iteration(family: str, run: Callable[..., Run], registry: Registry) -> None:
    made = run(family, "one", iterations=1)
    assert Trainer(config(made), registry, callbacks=[Callback()]).train() == "finished"
    (record,) = made.log("metrics")
    assert record["change_norm"] > 0


@pytest.mark.slow
@each
def test_a_plan(family: str, run: Callable[..., Run], registry: Registry) -> None:
    made = run(family, "planned")
    plan = make_plan(config(made), measure_model(config(made), registry), registry)
    assert plan.operations.keys() >= {"rollout", "optimize"}
    assert all(count > 0 for count in plan.operations.values())


@pytest.mark.slow
@matrix
def test_a_run_that_was_killed_comes_to_the_same_end(family: str, driver: Driver, run: Callable[..., Run]) -> None:
    """Byte for byte; in the middle of the second iteration."""
    whole, killed = run(family, "whole"), run(family, "killed")
    assert_all_well(driver.train(whole, 1))
    (ended,) = driver.train(killed, 1, at=("append", 4))
    assert ended["status"] == KILLED, ended["output"]
    assert len(killed.log("metrics")) == 1
    assert_all_well(driver.train(killed, 1, "--resume"))
    assert killed.files() == whole.files()


@pytest.mark.slow
@matrix
def test_the_same_for_any_number_of_processes(family: str, driver: Driver, run: Callable[..., Run]) -> None:
    one = run(family, "one")
    assert_all_well(driver.train(one, 1))
    for count in (2, 3):
        several = run(family, f"p{count}")
        assert_all_well(driver.train(several, count))
        assert_same(several, one)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
@matrix
def test_weights_that_are_sharded(family: str, train: str, driver: Driver, run: Callable[..., Run]) -> None:
    """Over two processes, gathered block by block."""
    trained = {"train": train, "gradient_checkpointing": train == "lora"}
    one, two = run(family, "one", trained), run(family, "two", trained, shard=True)
    assert_all_well(driver.train(one, 1))
    assert_all_well(driver.train(two, 2))
    assert_same(two, one)
