"""Measurements of the current model for timestep policies (`contracts.Probe`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.contracts import Probe
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.flow.velocity import interpolate, velocity_target
from dgpo_core.plugins import contract_checks
from dgpo_core.training.memory import TooLittleMemoryError, in_parts
from dgpo_core.transfers import in_float64
from dgpo_core.types import Conditioning, Prompt, mean_square, weighted

if TYPE_CHECKING:
    from dgpo_core.training.policy import ModelName, Policy
    from dgpo_core.training.rollout import RolloutSampler

__all__ = ["PolicyProbe"]


class PolicyProbe(Probe):
    """Samples and errors of one of the policy's models on `prompts`, cycled.

    rollout_sampler: the sampler of rollouts; many_step: creates it with a multiple of the solver steps; draws: key of
    the noise, the same in every measurement.
    """

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
        """Draw samples x0 [count, ...] with `refine` times the solver steps of rollouts."""
        rollout_sampler = self.rollout_sampler if refine == 1 else self.many_step(refine)
        drawn = rollout_sampler.sample_groups(self._prompts(count), 1, self.draws.at("samples"), self.model)
        return torch.cat([rollout.x0 for rollout in drawn])

    def errors(self, x0: Tensor, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Return the denoising score matching errors of the model and of the base model, float64 [T, B] on the CPU."""
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
        errors: list[Tensor] = []
        measured = f"{size} samples; lower rollout.micro_batch" if self.policy.sharded else "a single sample"
        refused = TooLittleMemoryError(f"timesteps: the device runs out of memory when it measures {measured}")

        def of_part(sigma: float, part: slice) -> Tensor:
            at = x0.new_full((len(x0[part]),), sigma)
            velocity = self.policy.velocity(interpolate(x0[part], noise[part], at), at, rows.rows(part))
            error = mean_square(velocity - target[part])
            return weighted(error, contract_checks.loss_weight(self.policy.backbone, at))

        with self.policy.activate(model), self.autocast():
            for sigma in sigmas.tolist():
                for start in range(0, len(x0), size):
                    work, stop = partial(of_part, sigma), min(start + size, len(x0))
                    # Halving a batch would add a pass, which a sharded model runs on all ranks or on none.
                    smallest = stop - start if self.policy.sharded else 1
                    errors += in_parts(work, start, stop, lambda error: refused, smallest=smallest)
        return in_float64(torch.cat(errors).view(len(sigmas), len(x0))).cpu()

    def _prompts(self, count: int) -> list[Prompt]:
        return [self.prompts[i % len(self.prompts)] for i in range(count)]
