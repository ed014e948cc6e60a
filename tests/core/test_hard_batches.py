"""Rows of different lengths, negatives, sizes and noise prediction together: the same numbers at any micro-batch, and
after a resume."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.storage.checkpoint import load
from dgpo_core.training.dry_run import dry_run
from dgpo_core.training.trainer import Trainer
from dgpo_kit.contracts import check_backbone
from dgpo_kit.toy import ToyOptions, plugin, run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection
from tests.integration.hard_toy import HardToy, hard_plugin

SETTINGS: dict[str, dict[str, Any]] = {
    "clip and kl": {
        "objective": {"clip": 1e-3, "kl": 0.02, "kl_cfg": 1.7, "ema_rollouts_after": 2},
        "rollout": {"guidance": 1.0},
    },
    "moving reference": {"objective": {"clip": None, "reference": "ema_fast"}, "rollout": {"guidance": 1.0}},
    "paths": {
        "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.02},
        "timesteps": {"use": "sampler-steps", "count": 2, "t_min": 0.1},
        "rollout": {"sampler": "flow-sde", "steps": 4},
        "evaluated": {"sampler": "flow-euler"},
        "sizes": [[8, 8]],
    },
    "measured times": {
        "timesteps": {"use": "dsm-gap-t-min", "count": 2, "t_min": 0.1, "options": {"every": 2, "samples": 3}}
    },
    "dpmpp": {"rollout": {"sampler": "flow-dpmpp"}},
}


def config(directory: Path, name: str, setting: dict[str, Any], micro_batch: int | None) -> RunConfig:
    setting = dict(setting)
    evaluated = setting.pop("evaluated", {})
    sizes = setting.pop("sizes", [[8, 8], [16, 8], [8, 24]])
    prompts = {"use": "hard-toy", "options": {"count": 5, "sizes": sizes}}
    backbone = {"use": "hard-toy", "checkpoint": "toy", "lora": {"rank": 4, "alpha": 4}, "options": {"double": True}}
    rollout = {"steps": 3, "shift": "auto", "group_size": 3, "groups": 4, "guidance": 2.5, "micro_batch": micro_batch}
    data = run_data(
        directory,
        run={"iterations": 3, "name": name},
        backbone=backbone,
        prompts={"train": prompts, "heldout": prompts},
        **setting | {"rollout": rollout | setting.get("rollout", {})},
        optimizer={"learning_rate": 0.01, "micro_batch": micro_batch},
        evaluation={"every": 2, "prompts": 4, "images": 0, "model": "policy", **evaluated},
    )
    data["timesteps"] = setting.get("timesteps", {"count": 2, "t_min": 0.1})
    return RunConfig.model_validate(data)


@functools.cache
def registry() -> Registry:
    """Everything that is installed, and the toys; the process's own registry stays without them."""
    made = Registry()
    for one, name in ((plugin, "toy"), (hard_plugin, "hard")):
        made.register(one, distribution=name)
    return made


def weights(directory: Path) -> dict[str, Tensor]:
    newest = load(sorted((directory / "checkpoints").iterdir())[-1])
    return newest.weights | {f"moments of {name}": tensor for name, tensor in newest.optimizer.items()}


def test_it_keeps_the_contract() -> None:
    section = BackboneSection.model_validate({"use": "hard-toy", "checkpoint": "toy", "lora": {"rank": 2, "alpha": 2}})
    check_backbone(lambda: HardToy(section, ToyOptions(), device=torch.device("cpu")), (8, 16), impossible=(8, 12))


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_same_at_any_micro_batch(setting: str, tmp_path: Path) -> None:
    """In float64, so that a mistake cannot hide behind rounding."""
    found = {}
    for micro_batch in (1, 2, 5, None):
        run = config(tmp_path, f"m{micro_batch}", SETTINGS[setting], micro_batch)
        Trainer(run, registry()).train()
        found[micro_batch] = weights(tmp_path / f"m{micro_batch}")
    for micro_batch, one in found.items():
        largest = max(float((one[name] - found[None][name]).abs().max()) for name in one)
        assert largest < 1e-9, f"micro-batches of {micro_batch}: weights differ by {largest}"
    assert max(float(t.abs().max()) for n, t in found[1].items() if n.startswith("moments")) > 1e-3


def test_the_same_after_a_resume(tmp_path: Path) -> None:
    setting = SETTINGS["measured times"]
    Trainer(config(tmp_path, "whole", setting, 2), registry()).train()
    Trainer(config(tmp_path, "parts", setting, 2), registry()).train(max_iterations=1)
    Trainer(config(tmp_path, "parts", setting, 2), registry()).train(resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


def test_paths_of_another_size_than_the_runs_are_refused_when_it_is_built(tmp_path: Path) -> None:
    """Training times are drawn for the run's size, and would be none of the paths'."""
    run = config(tmp_path, "run", SETTINGS["paths"] | {"sizes": [[16, 8]]}, 2)
    with pytest.raises(
        UserError, match=r"8x8 \(shift 1\) and 16x8 .* one size for all prompts, that of rollout.resolution"
    ):
        Trainer(run, registry()).build()


def test_a_dry_run(tmp_path: Path) -> None:
    dry_run(Trainer(config(tmp_path, "dry", SETTINGS["clip and kl"], 2), registry()))
    assert not (tmp_path / "dry").exists()
