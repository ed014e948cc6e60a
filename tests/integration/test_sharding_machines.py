"""A model that is sharded within each of several machines (HSDP), and gathered in bfloat16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from dgpo_core.distributed.processes import Processes
from dgpo_core.distributed.sharding import gather_dtype, replicas, shard
from dgpo_core.plugins.registry import get_registry
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_sd3.testing import make_tiny_checkpoint
from tests.integration.test_processes import DOUBLE, PATIENT, Driver, Run, assert_all_well, difference
from tests.integration.test_sharding import FULL, SETTINGS, assert_same

MACHINE = {"iterations": 3, "process_timeout": PATIENT, "shard": "machine"}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver(
        "dgpo_core.distributed.sharding", "dgpo_sd3.backbone", "dgpo_core.lora", "diffusers:StableDiffusion3Pipeline",
        "diffusers:SD3Transformer2DModel", "diffusers:AutoencoderKL", "diffusers:FlowMatchEulerDiscreteScheduler",
        "transformers:CLIPTextModelWithProjection", "transformers:CLIPTokenizer", "peft:LoraConfig",
    )  # fmt: skip
    yield made
    made.close()


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(setting, marks=() if setting == "all weights, two updates" else pytest.mark.slow)
        for setting in SETTINGS
        if setting != "all weights, a t_min that is measured"
    ],
)
def test_two_machines_of_two_are_the_same_as_one_process(setting: str, driver: Driver, tmp_path: Path) -> None:
    changes = SETTINGS[setting]
    one = Run(tmp_path, "one", **changes)
    assert_all_well(driver.train(one, 1))
    several = Run(tmp_path, "several", **changes, run=MACHINE | {"name": "several"})
    assert_all_well(driver.train(several, 4, machines=2))
    assert_same(several, one)


@pytest.mark.slow
def test_a_resume_and_an_export(driver: Driver, tmp_path: Path) -> None:
    """On two machines, then on one, then whole; the export gathers what it sharded."""
    one, run = Run(tmp_path, "one", **FULL), Run(tmp_path, "run", **FULL, run=MACHINE | {"name": "run"})
    assert_all_well(driver.train(one, 1))
    assert_all_well(driver.train(run, 4, "--max-iterations", "1", machines=2))
    assert_all_well(driver.train(run, 2, "--resume", "--max-iterations", "1"))
    assert_all_well(driver.train(run, 4, "--resume", machines=2))
    assert_same(run, one)
    exported = []
    for made, count in ((one, 1), (run, 4)):
        out = tmp_path / f"exported {made.path.name}"
        assert_all_well(
            driver.run(["export", str(made.path), "--output", str(out)], count, machines=2 if count > 1 else 1)
        )
        exported.append({name: t for file in sorted(out.rglob("*.safetensors")) for name, t in load_file(file).items()})
    assert exported[0]
    assert exported[0].keys() == exported[1].keys()
    assert all(float((exported[1][n].double() - t.double()).abs().max()) < 1e-6 for n, t in exported[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_network_with_blocks(train: str, driver: Driver, tmp_path: Path) -> None:
    """SD3's in float32, up to the order of sums; and under autocast, up to the roundings that `gather_dtype` adds."""
    backbone: dict[str, Any] = {
        "use": "sd3", "checkpoint": str(make_tiny_checkpoint(tmp_path / "sd3")), "train": train,
    }  # fmt: skip
    if train == "lora":
        backbone["lora"] = {"rank": 4, "alpha": 8}
    changes: dict[str, Any] = {
        "backbone": backbone,
        "rollout": {"steps": 2, "group_size": 3, "groups": 4, "micro_batch": 2, "resolution": 16, "guidance": 1.5},
        "optimizer": {"learning_rate": 1e-3, "epsilon": 1e-3, "micro_batch": 2},
    }
    for precision, of_weights, of_records in (("no", 1e-5, 1e-4), ("bf16", 2e-3, 2e-2)):
        chosen = changes | {"precision": {"autocast": precision}}
        one = Run(tmp_path, f"one {precision}".replace(" ", "-"), **chosen)
        assert_all_well(driver.train(one, 1))
        name = f"four-{precision}"
        four = Run(tmp_path, name, **chosen, run=MACHINE | {"name": name})
        assert_all_well(driver.train(four, 4, machines=2))
        wanted, found = one.tensors(), four.tensors()
        assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}
        assert max(float((found[n] - wanted[n]).abs().max()) for n in wanted) < of_weights
        assert difference(four.log("metrics"), one.log("metrics")) < of_records
        assert max(record["change_norm"] for record in one.log("metrics")) > 1e-3


# -- what each process holds and gathers ------------------------------------------------------------------------------


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """Rank 0 of two machines of four, whose collectives do nothing."""
    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    processes = Processes(0, 8)
    monkeypatch.setattr(processes, "all_gather_object", lambda value: [value] * 8)
    yield processes
    dist.destroy_process_group()


def backbone_of(directory: Path, **section: Any) -> Any:
    values = {"use": "sd3", "checkpoint": str(make_tiny_checkpoint(directory / "sd3")), **section}
    return get_registry().create("backbone", BackboneSection.model_validate(values), device=torch.device("cpu"))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_each_machine_holds_all_weights(train: str, ranks: Processes, tmp_path: Path) -> None:
    made = backbone_of(tmp_path, train=train)
    before = {name: p.numel() for name, p in made.module.named_parameters()}
    shard(made, torch.device("cpu"), ranks, within_machines=True)
    sharded = {n: p for n, p in made.module.named_parameters() if isinstance(p, DTensor)}
    assert sharded
    assert all(p.device_mesh.shape == (2, 4) and replicas(p) == 2 for p in sharded.values())
    here, whole = sum(p.to_local().numel() for p in sharded.values()), sum(before[name] for name in sharded)
    assert whole / 4 <= here < whole / 4 * 1.1


NAMES = {"gathered": ("all_gather_single", "all_gather_into_tensor"), "summed": ("all_reduce",),
         "scattered": ("reduce_scatter_single", "reduce_scatter_tensor")}  # fmt: skip
"""Names of collectives in newer and in older versions of torch."""


class Seen:
    """Dtypes of what is gathered and reduced, and how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.dtypes: dict[str, Counter[torch.dtype]] = {kind: Counter() for kind in NAMES}
        for kind, names in NAMES.items():
            name = next(name for name in names if hasattr(dist, name))
            monkeypatch.setattr(dist, name, self._watched(kind, getattr(dist, name)))

    def _watched(self, kind: str, original: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            given = next(value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor))
            self.dtypes[kind][given.dtype] += 1
            return original(*arguments, **keywords)

        return call


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_gathered_and_reduced(
    bf16: bool, ranks: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With autocast, weights in bfloat16; gradients always in float32, between machines only when told so."""
    from dgpo_core.distributed.sharding import reduce_between_machines

    made = backbone_of(tmp_path, train="full")
    shard(made, torch.device("cpu"), ranks, within_machines=True, bf16=bf16)
    seen = Seen(monkeypatch)
    from dgpo_kit.given import prompts_of

    conditioning = made.encode(prompts_of(["a"]))
    x, sigma = torch.randn(1, *made.latent_shape(32, 32)), torch.full((1,), 0.5)
    groups = 0
    for now in (False, True):
        for counted in seen.dtypes.values():
            counted.clear()
        reduce_between_machines(made, now)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            velocity = made.velocity(x, sigma, conditioning)
        velocity.square().mean().backward()
        gathered = torch.bfloat16 if bf16 else torch.float32
        assert set(seen.dtypes["gathered"]) == {gathered}
        assert set(seen.dtypes["scattered"]) == {torch.float32}
        groups = seen.dtypes["scattered"].total()
        assert seen.dtypes["gathered"].total() == 2 * groups, "for the forward and for the backward pass"
        assert seen.dtypes["summed"].total() == (groups if now else 0)
    assert groups == len(made.blocks()) + 1
    assert {p.grad.dtype for p in made.module.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(
    ("section", "expected"),
    [({"train": "full"}, torch.bfloat16), ({}, torch.bfloat16), ({"dtype": "bfloat16"}, None),
     ({"lora": {"dora": True}}, None)],
)  # fmt: skip
def test_the_dtype_of_gathered_weights(section: dict[str, Any], expected: torch.dtype | None, tmp_path: Path) -> None:
    made = backbone_of(tmp_path, **section)
    assert gather_dtype(made, bf16=True) == expected
    assert gather_dtype(made, bf16=False) is None


@pytest.mark.parametrize(
    ("count", "machines", "said"), [(2, 2, "every machine has one process, so that nothing would be sharded; use true")]
)
def test_machines_with_one_process(count: int, machines: int, said: str, driver: Driver, tmp_path: Path) -> None:
    run = Run(tmp_path, "run", **DOUBLE, run=MACHINE)
    for ended in driver.train(run, count, machines=machines):
        assert ended["status"] == 2
        assert f"run.shard: machine: {said}" in " ".join(ended["output"].split())


def test_machines_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    from dgpo_core.errors import UserError

    processes = Processes(0, 3)
    monkeypatch.setattr(processes, "all_gather_object", lambda value: [2, 2, 1])
    with pytest.raises(UserError, match=r"run\.shard: machine: every machine must have the same number.* 1 and 2"):
        processes.ranks_per_machine()
