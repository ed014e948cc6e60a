"""Whole runs of every family on its tiny checkpoint: training, kill and resume, processes, sharded weights, plans."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.engine import build_engine
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt
from dgpo_diffusers.checkpoints import load_model
from dgpo_kit.toy import plugin
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_schemas.run import RunConfig
from tests.families.proof import among, proofs
from tests.integration.test_processes import KILLED, PATIENT, Driver, Run, assert_all_well, difference

ELSEWHERE = ("sd3", "wan", "wan-i2v")
"""Families whose own packages test whole runs."""
FAMILIES = {name: proof for name, proof in proofs().items() if "," not in name and name not in ELSEWHERE}

IMPORTED = (
    "dgpo_core.distributed.sharding", "dgpo_core.lora", "dgpo_diffusers.backbone", "diffusers:AutoencoderKL",
    "diffusers:FluxPipeline", "diffusers:FluxTransformer2DModel", "diffusers:QwenImagePipeline",
    "diffusers:QwenImageTransformer2DModel", "diffusers:StableDiffusionXLPipeline", "diffusers:UNet2DConditionModel",
    "transformers:CLIPTextModel", "transformers:Qwen2_5_VLForConditionalGeneration", "transformers:T5EncoderModel",
)  # fmt: skip
"""By the driver, once for all runs."""

MATRIX = ("flux", "sdxl", "qwen-image")
"""Architectures of the whole matrix of processes, sharding, kill and resume; the others run in one process."""

each = pytest.mark.parametrize("family", among(FAMILIES, quick=["flux"]))
matrix = pytest.mark.parametrize("family", MATRIX)


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
    """`run(family, name, backbone={...}, objective={...}, **run)`: two iterations with guidance, of groups that two and
    three processes share unevenly. AdamW's epsilon is large, lest it make steps of roundings."""

    def make(
        family: str,
        name: str,
        backbone: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
        precision: dict[str, Any] | None = None,
        guidance: float = 1.5,
        **run: Any,
    ) -> Run:
        proof = FAMILIES[family]
        options = {**proof.values, **proof.quick}
        use = {"use": proof.kind.layout.backbone, "checkpoint": str(checkpoint(family)), "options": options}
        rollout = {"steps": 2, "group_size": 3, "groups": 3, "micro_batch": 2, "resolution": 16, "guidance": guidance}
        return Run(
            tmp_path,
            name,
            run={"name": name, "iterations": 2, "process_timeout": PATIENT, **run},
            backbone=use | ({"lora": {"rank": 4, "alpha": 8}} if backbone is None else backbone),
            rollout=rollout | dict(proof.rollout),
            **({"rewards": [{"use": "motion"}]} if proof.kind.media == "video" else {}),
            optimizer={"learning_rate": 1e-3, "epsilon": 1e-3, "micro_batch": 2},
            objective=objective or {},
            precision=precision or {},
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
    """Byte for byte."""
    whole, killed = run(family, "whole"), run(family, "killed")
    assert_all_well(driver.train(whole, 1))
    assert_killed_and_resumed(driver, killed, 1)
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


FAST = {"autocast": "bf16", "adapter": "fast", "norms": "fast"}
IN_BFLOAT16 = {"dtype": "bfloat16", "lora": {"rank": 4, "alpha": 8}}


def test_fast_precision_trains_alike(run: Callable[..., Run], registry: Registry) -> None:
    """The step of an update is that of exact precision, up to the roundings of bfloat16."""
    runs = [run("flux", name, IN_BFLOAT16, None, precision) for name, precision in (
        ("exact", FAST | {"adapter": "exact", "norms": "exact"}), ("fast", FAST),
    )]  # fmt: skip
    for made in runs:
        assert Trainer(config(made), registry, callbacks=[Callback()]).train() == "finished"
    exact, fast = (made.log("metrics") for made in runs)
    assert [record["change_norm"] for record in fast] == pytest.approx([r["change_norm"] for r in exact], rel=0.1)
    assert fast[-1]["change_norm"] != exact[-1]["change_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fast_precision_with_shards_and_resumed(checkpointing: bool, driver: Driver, run: Callable[..., Run]) -> None:
    backbone = IN_BFLOAT16 | {"gradient_checkpointing": checkpointing}
    one, two, killed = (
        run("flux", name, backbone, None, FAST, shard=name == "two") for name in ("one", "two", "killed")
    )
    assert_all_well(driver.train(one, 1))
    assert_all_well(driver.train(two, 2))
    change, other = (made.log("metrics")[-1]["change_norm"] for made in (one, two))
    assert change == pytest.approx(other, rel=0.1)
    assert_killed_and_resumed(driver, killed, 1)
    assert killed.files() == one.files()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "train"), [("flux", "lora"), ("flux", "full"), ("sdxl", "lora")])
def test_a_run_that_starts_from_another(family: str, train: str, driver: Driver, run: Callable[..., Run]) -> None:
    """Its reference is what it starts from, in several processes, sharded or not, and after it was killed."""
    trained = {"train": train}
    other = run(family, "other", trained)
    assert_all_well(driver.train(other, 1))

    def starting(name: str, **more: Any) -> Run:
        return run(family, name, trained, {"reference": "start"}, init_from=f"{other.path}:policy", **more)

    one, two, sharded, killed = starting("one"), starting("two"), starting("sharded", shard=True), starting("killed")
    assert_all_well(driver.train(one, 1))
    for made in (two, sharded):
        assert_all_well(driver.train(made, 2))
        assert_same(made, one)
    wanted, found = other.tensors(), sharded.tensors()
    starts = [name.removeprefix("start/") for name in found if name.startswith("start/")]
    assert starts
    assert all(torch.equal(found[f"start/{name}"], wanted[f"policy/{name}"]) for name in starts)
    assert_killed_and_resumed(driver, killed, 1)
    assert killed.files() == one.files()


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_reference_that_is_reset(train: str, driver: Driver, run: Callable[..., Run]) -> None:
    """In several processes, sharded or not, and after the run was killed."""
    names = ("one", "two", "sharded", "killed")
    objective = {"reference": "reset", "reset": {"every": 1}}
    one, two, sharded, killed = (
        run("flux", name, {"train": train}, objective, guidance=1.0, shard=name == "sharded") for name in names
    )
    assert_all_well(driver.train(one, 1))
    for made in (two, sharded):
        assert_all_well(driver.train(made, 2))
        assert_same(made, one)
    found = one.tensors()
    resets = [name.removeprefix("reset/") for name in found if name.startswith("reset/")]
    assert resets
    assert all(torch.equal(found[f"reset/{name}"], found[f"policy/{name}"]) for name in resets)
    assert_killed_and_resumed(driver, killed, 1)
    assert killed.files() == one.files()


@pytest.mark.slow
def test_a_sharded_run_that_starts_from_another_is_killed(driver: Driver, run: Callable[..., Run]) -> None:
    """Both processes are resumed without the other run, which is gone."""
    trained = {"train": "full"}
    other = run("flux", "other", trained)
    assert_all_well(driver.train(other, 1))
    whole, killed = (
        run("flux", name, trained, {"reference": "start"}, init_from=str(other.path), shard=True)
        for name in ("whole", "killed")
    )
    assert_all_well(driver.train(whole, 2))
    assert_killed_and_resumed(driver, killed, 2, between=lambda: shutil.rmtree(other.path))
    assert killed.files() == whole.files()


def assert_killed_and_resumed(
    driver: Driver, run: Run, count: int, between: Callable[[], object] = lambda: None
) -> None:
    """In the middle of the second iteration."""
    ended = driver.train(run, count, at=("append", 4))
    assert ended[0]["status"] == KILLED, ended[0]["output"]
    assert len(run.log("metrics")) == 1
    between()
    assert_all_well(driver.train(run, count, "--resume"))


def cached(run: Callable[..., Run], family: str, name: str, **changes: Any) -> Run:
    """A run that keeps its prompt embeddings in a directory that all runs of a test share."""
    made = run(family, name, **changes)
    data = yaml.safe_load(made.file.read_text())
    data["backbone"]["cache"] = {"directory": str(made.path.parent / "embeddings")}
    made.file.write_text(yaml.safe_dump(data))
    return made


@pytest.fixture
def no_encoders(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, loading an encoder raises."""

    def refuse(opened: Any, name: str, dtype: torch.dtype) -> Any:
        assert name not in opened.layout.encoders, f"{name} is loaded"
        return load_model(opened, name, dtype)

    return lambda: monkeypatch.setattr("dgpo_diffusers.loading.load_model", refuse)


@pytest.mark.parametrize("family", among(["flux", "sdxl"], quick=["flux"]))
def test_a_second_run_loads_no_text_encoder(
    family: str, run: Callable[..., Run], registry: Registry, no_encoders: Callable[[], None]
) -> None:
    """And comes to the same end as runs that load them, byte for byte."""
    plain = run(family, "plain", iterations=1)
    first, second = (cached(run, family, name, iterations=1) for name in ("first", "second"))
    for made in (plain, first):
        Trainer(config(made), registry).train()
    no_encoders()
    Trainer(config(second), registry).train()
    assert without_names(first) == without_names(second) == without_names(plain)
    assert [image.tolist() for image in second.images()] == [image.tolist() for image in plain.images()]
    with closing(build_engine(config(second), registry)) as engine:
        size = engine.config.rollout.height_width
        with pytest.raises(AssertionError, match=r"text_encoder\w* is loaded"):
            engine.conditioning([Prompt("a new prompt", size=size)])


def without_names(run: Run) -> dict[str, bytes]:
    return {name: content.replace(run.path.name.encode(), b"") for name, content in run.files().items()}


@pytest.mark.slow
def test_processes_share_embeddings(driver: Driver, run: Callable[..., Run]) -> None:
    """Sharded or not, with a cache that is empty, full, or damaged."""
    for shard, states in ((False, ("empty", "damaged")), (True, ("full",))):
        plain = run("sdxl", f"plain-{shard}", shard=shard)
        assert_all_well(driver.train(plain, 2))
        for state in states:
            made = cached(run, "sdxl", state, shard=shard)
            if state == "damaged":
                for path in made.path.parent.glob("embeddings/*/*.safetensors"):
                    path.write_bytes(path.read_bytes()[:-1])
            assert_all_well(driver.train(made, 2))
            assert without_names(made) == without_names(plain), (shard, state)
