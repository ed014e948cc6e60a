"""Published models without their weights: their size, the layers that are adapted, operations, times of training."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.contracts import TimestepContext
from dgpo_core.flow import schedules
from dgpo_core.types import Prompt, Schedule
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.backbone import BackboneSection
from tests.families.proof import proofs

__all__ = ["adapted_layers", "meta_model", "operations", "parameters", "section", "trained_steps"]


def section(use: str, checkpoint: Path | str, **settings: Any) -> BackboneSection:
    settings.setdefault("lora", {"rank": 4, "alpha": 12})
    return BackboneSection(use=use, checkpoint=str(checkpoint), **settings)


@lru_cache(maxsize=2)
def meta_model(use: str, checkpoint: str, **options: Any) -> Any:
    """A published model of a family; not to be changed."""
    proof = proofs()[use]
    return proof.kind.meta_model(section(use, checkpoint), proof.options(**options))


def parameters(model: Any) -> int:
    """The denoiser's parameters without those of its adapter."""
    trained = {id(parameter) for parameter in model.trainable().values()}
    return sum(p.numel() for p in model.module.parameters() if id(p) not in trained)


def adapted_layers(model: Any) -> set[str]:
    return {name.split(".lora_")[0] for name in model.trainable()}


@torch.no_grad()
def operations(model: Any, size: tuple[int, int]) -> int:
    """Of one velocity of one sample, in (height, width) pixels."""
    x, sigma = torch.zeros(1, *model.latent_shape(*size), device="meta"), torch.full((1,), 0.5, device="meta")
    conditioning = model.encode([Prompt("a", size=size)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        assert model.velocity(x, sigma, conditioning).shape == x.shape
    return int(counter.get_total_flops())


def trained_steps(config: RunConfig, schedule: Schedule) -> list[bool]:
    """Of each of the sampler's times, the final 0 too, whether a run trains at it; there must be enough of them."""
    sigmas = schedules.sigmas(config.rollout.steps, schedule)
    t_min, t_max = config.training_range(schedule.shift)
    context = TimestepContext(sigmas, t_min, t_max, schedule.shift, 1, config.run.iterations)
    SamplerSteps(None).check(context, config.timesteps.count)
    found: list[bool] = ((sigmas >= t_min) & (sigmas <= t_max)).tolist()
    return found
