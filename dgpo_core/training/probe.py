"""Measurements of the model as it is now, for timestep policies (`contracts.Probe`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import Probe
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.velocity import interpolate, velocity_target
from dgpo_core.plugins import contract_checks
from dgpo_core.types import Conditioning, Prompt, mean_square, weighted

if TYPE_CHECKING:
    from dgpo_core.training.policy import ModelName, Policy
    from dgpo_core.training.rollout import RolloutSampler

__all__ = ["PolicyProbe"]


class PolicyProbe(Probe):
    """The policy's model `model` on `prompts`, taken in turn.

    rollout_sampler: draws the rollouts; many_step: the same with a multiple of its steps; draws: key of the noise, the
    same for every measurement."""

    def __init__(
        self,
        policy: Policy,
        rollout_sampler: RolloutSampler,
        many_step: Callable[[int], RolloutSampler],
        prompts: Sequence[Prompt],
        *,
        model: ModelName,
        draws: Draws,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.policy = policy
        self.rollout_sampler = rollout_sampler
        self.many_step = many_step
        self.prompts = prompts
        self.model: ModelName = model
        self.draws = draws
        self.autocast = autocast

    def samples(self, count: int, *, refine: int = 1) -> Tensor:
        """x0 [count, ...] in `refine` times the rollouts' steps."""
        rollout_sampler = self.rollout_sampler if refine == 1 else self.many_step(refine)
        drawn = rollout_sampler.sample_groups(self._prompts(count), 1, self.draws.at("samples"), self.model)
        return torch.cat([rollout.x0 for rollout in drawn])

    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """dsm of the policy and of the base model, float64 [T, B] on the CPU."""
        keys = [self.draws.at("noise", i) for i in range(len(x0))]
        noise = normal_rows(keys, tuple(x0.shape[1:]), x0.device).to(x0.dtype)
        rows = self.rollout_sampler.conditioning(
            [p.sized(self.rollout_sampler.resolution) for p in self._prompts(len(x0))]
        )
        return self._errors(self.model, x0, noise, rows, sigmas), self._errors("base", x0, noise, rows, sigmas)

    @torch.no_grad()
    def _errors(self, model: ModelName, x0: Tensor, noise: Tensor, rows: Conditioning, sigmas: Tensor) -> Tensor:
        size = self.rollout_sampler.micro_batch or len(x0)
        target = velocity_target(x0, noise)
        found = []
        with self.policy.activate(model), self.autocast():
            for sigma in sigmas.tolist():
                for start in range(0, len(x0), size):
                    part = slice(start, start + size)
                    at = x0.new_full((len(x0[part]),), sigma)
                    velocity = self.policy.velocity(interpolate(x0[part], noise[part], at), at, rows.rows(part))
                    error = mean_square(velocity - target[part])
                    found.append(weighted(error, contract_checks.loss_weight(self.policy.backbone, at)))
        return torch.cat(found).view(len(sigmas), len(x0)).double().cpu()

    def _prompts(self, count: int) -> list[Prompt]:
        return [self.prompts[i % len(self.prompts)] for i in range(count)]
