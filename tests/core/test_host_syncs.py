"""The inner loops never wait for the device.

They are run on torch's meta device, whose tensors have shapes and no values: whatever would need a value on the host
(`item`, `tolist`, `bool`, `nonzero`, a copy to the CPU) raises there, and would make a CUDA stream wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo_core.training.microbatches
import dgpo_core.training.rollout
from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.contracts import Backbone
from dgpo_core.draws import Draws
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.monitors import media_statistics
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_core.training.scored import thumbnails
from dgpo_core.types import Prompt, TrainingBatch
from dgpo_schemas.base import Options, UseBlock
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
META = torch.device("meta")
PROMPTS = [Prompt("a red circle"), Prompt("two blue squares")]
MEMBERS = 3
BACKBONES: dict[str, dict[str, Any]] = {
    "toy": {},
    "sd3": {
        "backbone": {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint", "options": {"text_length": 0}},
        "rollout": {"resolution": 64},
    },
}


@pytest.fixture(autouse=True)
def _noise_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no generators on the meta device."""

    def rows(keys: Sequence[Draws], shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.empty((len(keys), *shape), device=device)

    for module in (dgpo_core.training.rollout, dgpo_core.training.microbatches):
        monkeypatch.setattr(module, "normal_rows", rows)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **keywords: nullcontext())  # nor autocast


Setting = tuple[RunConfig, Policy, Registry]
OBJECTIVES: list[dict[str, Any]] = [{"clip": 1e-3, "kl": 0.02}, {"clip": None, "kl": 0.0, "reference": "ema_fast"}]
ALL = [("toy", *how) for how in product(("flow-euler", "flow-dpmpp"), ("base", "policy", "ema_fast"), (1.0, 3.0))]


@pytest.fixture
def setting(name: str, make_config: Make, registry: Registry) -> Setting:
    config = make_config(**BACKBONES[name])
    if name == "sd3":
        config = RunConfig.model_validate(
            config.model_dump(mode="json", exclude_unset=True) | {"backbone": BACKBONES["sd3"]["backbone"]}
        )
    made: Backbone = registry.create("backbone", config.backbone, device=META)
    assert made.device.type == "meta"
    return config, Policy(made, config.objective), registry


def test_the_device_would_notice() -> None:
    """What the other tests rely on."""
    value = torch.ones((), device=META)
    for look in (value.item, value.tolist, lambda: bool(value), value.nonzero, value.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            look()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("name", "sampler", "model", "guidance"), [*ALL, ("sd3", "flow-euler", "policy", 3.0)])
def test_rolling_out_and_decoding(sampler: str, model: Any, guidance: float, setting: Setting) -> None:
    config, policy, registry = setting
    rollout_sampler = RolloutSampler(
        policy, registry.create("sampler", UseBlock(use=sampler)), ConditioningCache(policy.backbone),
        resolution=config.rollout.height_width, steps=3, shift=2.0, guidance=guidance, micro_batch=4,
        autocast=nullcontext,
    )  # fmt: skip
    drawn = 0
    for rollout in rollout_sampler.sample_groups(PROMPTS, MEMBERS, Draws(0), model):
        media = policy.backbone.decode(rollout.x0)
        assert media.device.type == "meta"
        thumbnails(media)
        media_statistics(media)
        drawn += len(media)
    assert drawn == len(PROMPTS) * MEMBERS


@pytest.mark.parametrize("name", ["toy"])
def test_which_steps_are_guided_is_known_in_advance(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    config, policy, registry = setting
    rollout_sampler = RolloutSampler(
        policy, registry.create("sampler", UseBlock(use="flow-euler")), ConditioningCache(policy.backbone),
        resolution=config.rollout.height_width, steps=4, shift=2.0, guidance=3.0, micro_batch=None,
        guidance_interval=[0.5, 0.95], autocast=nullcontext,
    )  # fmt: skip
    scales: list[float] = []
    velocity = policy.velocity
    monkeypatch.setattr(policy, "velocity", lambda *given: (scales.append(given[-1]), velocity(*given))[1])
    with pytest.raises((RuntimeError, NotImplementedError)):
        list(rollout_sampler.sample_groups(PROMPTS, MEMBERS, Draws(0), "policy"))  # times are compared at the end
    assert scales == [1.0, 3.0, 3.0, 1.0]


@pytest.mark.parametrize(
    ("name", "objective", "micro_batch"),
    [("toy", one, size) for one in OBJECTIVES for size in (2, 100)] + [("sd3", OBJECTIVES[0], 2)],
)
def test_the_gradient_of_an_update(objective: dict[str, Any], micro_batch: int, setting: Setting) -> None:
    config, policy, _ = setting
    config = config.model_copy(
        update={
            "objective": config.objective.model_copy(update=objective),
            "optimizer": config.optimizer.model_copy(update={"micro_batch": micro_batch}),
        }
    )
    optimizer = Optimizer(
        config, policy, DirectGroupPreference(config.objective, Options()), ConditioningCache(policy.backbone),
        autocast=nullcontext,
    )  # fmt: skip
    shape = policy.backbone.latent_shape(*config.rollout.height_width)
    count = len(PROMPTS) * MEMBERS
    weights = torch.tensor([[0.5, 0.5, -1.0], [1.0, -0.5, -0.5]], dtype=torch.float64)
    batch = TrainingBatch(
        prompts=tuple(PROMPTS), x0=torch.empty(count, *shape, device=META), own=range(count), advantages=weights,
        signed_weights=weights, scored=torch.ones(2, MEMBERS, dtype=torch.bool), residual=torch.zeros(2),
    )  # fmt: skip
    optimizer.accumulation.add(optimizer.prepare(batch, range(2), [0.8, 0.4], Draws(1)))
    assert all(p.grad is not None for p in policy.parameters.values())
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.step(batch, torch.tensor([0.8, 0.4]), Draws(1))  # whether the gradient is finite is asked once
    assert optimizer.updates == 0
    optimizer._look = lambda values: [1.0] * len(values)  # nor is anything else asked for
    optimizer.adamw = torch.optim.AdamW(policy.parameters.values())  # the fused one has no kernel here
    (result,) = optimizer.step(batch, torch.tensor([0.8, 0.4]), Draws(1))
    assert not result.skipped
    assert optimizer.updates == 1
