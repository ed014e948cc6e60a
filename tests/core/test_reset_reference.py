"""A reference that is reset (GARDO, arXiv 2512.24138): when it becomes the policy, and what is compared with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
SAME = ("metrics.jsonl", "checkpoints/000005/weights.safetensors", "checkpoints/000005/optimizer.safetensors")


@pytest.fixture
def make_config(tmp_path: Path) -> Make:
    def make(name: str = "toy", reset: dict[str, Any] | None = None, **objective: Any) -> RunConfig:
        section = {"kl": 0.5, "reference": "reset", "reset": reset or {"every": 2}} | objective
        run = {"name": name, "output": str(tmp_path), "iterations": 5, "seed": 3, "device": "cpu", "threads": 1}
        more = {"objective": section, "optimizer": {"updates": 1}, "checkpoints": {"every": 1, "keep": 9}}
        return RunConfig.model_validate(run_data(tmp_path, **more) | {"run": run})

    return make


def metrics(config: RunConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_path(config) / "metrics.jsonl").read_text().splitlines()]


def models(config: RunConfig, iteration: int) -> dict[str, dict[str, torch.Tensor]]:
    found = load_file(run_path(config) / f"checkpoints/{iteration:06d}/weights.safetensors")
    names = {name.partition("/")[2] for name in found}
    return {model: {name: found[f"{model}/{name}"] for name in names} for model in ("policy", "reset")}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_reference_becomes_the_policy_after_every_second_iteration(make_config: Make, registry: Registry) -> None:
    config = make_config()
    Trainer(config, registry).train()
    records = metrics(config)
    assert [record["extra"]["reset"] for record in records] == [0, 1, 0, 1, 0]
    # One update an iteration: the policy is the reference when it begins, at the start and after each reset.
    assert [record["kl"] == 0 for record in records] == [True, False, True, False, True]
    assert [record["sigmoid"] == pytest.approx(0.5, abs=1e-9) for record in records] == [True, False, True, False, True]
    found = {iteration: models(config, iteration) for iteration in range(1, 6)}
    assert [same(found[i]["policy"], found[i]["reset"]) for i in range(1, 6)] == [False, True, False, True, False]
    assert same(found[3]["reset"], found[2]["policy"])
    assert same(found[5]["reset"], found[4]["policy"])


def test_it_is_reset_when_the_policy_is_far(make_config: Make, registry: Registry) -> None:
    """After the first iteration whose KL term is above the limit; the first one's is 0."""
    config = make_config(reset={"every": 100, "kl": 1e-30})
    Trainer(config, registry).train()
    records = metrics(config)
    assert [record["extra"]["reset"] for record in records] == [0, 1, 0, 1, 0]
    assert [record["kl"] == 0 for record in records] == [True, False, True, False, True]
    far = make_config("far", reset={"every": 100, "kl": 1e6})
    Trainer(far, registry).train()
    assert not any(record["extra"]["reset"] for record in metrics(far))


def test_a_run_that_is_never_reset_is_one_with_a_frozen_reference(make_config: Make, registry: Registry) -> None:
    never, frozen = make_config("never", reset={"every": 100}), make_config("frozen", {"every": 15}, reference="frozen")
    for config in (never, frozen):
        Trainer(config, registry).train()
    assert [r["kl"] for r in metrics(never)] == [r["kl"] for r in metrics(frozen)]
    assert same(models(never, 5)["policy"], {
        name.removeprefix("policy/"): tensor
        for name, tensor in load_file(run_path(frozen) / "checkpoints/000005/weights.safetensors").items()
        if name.startswith("policy/")
    })  # fmt: skip


def test_a_resumed_run_is_the_run_that_was_not_stopped(make_config: Make, registry: Registry) -> None:
    """Stopped between two resets, whose reference is in the checkpoint alone."""
    straight, stopped = make_config("straight"), make_config("stopped")
    Trainer(straight, registry).train()
    Trainer(stopped, registry).train(max_iterations=3)
    assert Trainer(stopped, registry).train(resume=True) == "finished"
    for file in SAME:
        assert (run_path(straight) / file).read_bytes() == (run_path(stopped) / file).read_bytes(), file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": "frozen"}, "objective.reset.*has no effect because objective.reference is frozen"),
        ({"reset": {"kl": 1e-3}, "kl": 0}, "objective.reset.kl.*has no effect because objective.kl is 0"),
        ({"reset": {"every": 0}}, "objective.reset.every"),
    ],
)
def test_what_has_no_effect_is_refused(make_config: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_config(**change)


def test_guided_rollouts_are_refused_as_with_other_moving_references(make_config: Make, tmp_path: Path) -> None:
    data = run_data(tmp_path, objective={"reference": "reset"}, rollout={"guidance": 4.5})
    with pytest.raises(ValueError, match=r"(?s)rollout.guidance.*cannot combine 4.5 with objective.reference = reset"):
        RunConfig.model_validate(data)
    data = run_data(tmp_path, objective={"reference": "reset", "kl_cfg": 4.5})
    with pytest.raises(ValueError, match=r"(?s)objective.kl_cfg.*cannot combine 4.5 with objective.reference = reset"):
        RunConfig.model_validate(data)
