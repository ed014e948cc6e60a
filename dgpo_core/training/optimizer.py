"""Updates of the policy's weights: gradient accumulation, AdamW and the moving averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.distributed.processes import Processes
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.paths import PathSteps
from dgpo_core.flow.sizes import bucket
from dgpo_core.training.accumulation import Accumulated, Accumulation
from dgpo_core.training.adamw import learning_rate, make_adamw, restore, state_of
from dgpo_core.training.batch_sizes import trained_at_once
from dgpo_core.training.microbatches import Update, active_members, local_members
from dgpo_core.training.models import Models
from dgpo_core.types import TrainingBatch

if TYPE_CHECKING:
    from dgpo_core.contracts import Objective, Sampler
    from dgpo_core.training.policy import ConditioningCache, Policy
    from dgpo_schemas.run import RunConfig

__all__ = ["Optimizer", "UpdateResult"]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The result of one update. grad_norm is before clipping, and finite unless `skipped`."""

    skipped: bool
    grad_norm: float
    learning_rate: float
    gradient: Accumulated


class Optimizer:
    """Updates the policy's weights with AdamW and the gradient of the objective.

    sampler: the sampler that drew the paths, for objectives that need them; look: reads a tensor's values from the
    device, once per update. For the other arguments see `Accumulation`.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        objective: Objective,
        conditioning: ConditioningCache,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        sampler: Sampler | None = None,
        processes: Processes | None = None,
        on_message: Callable[[str], None] = lambda text: None,
        interrupt: Callable[[], None] = lambda: None,
        progress: Callable[[int], None] = lambda done: None,
        look: Callable[[Tensor], list[float]] = Tensor.tolist,
    ) -> None:
        self.config = config
        self.section = config.optimizer
        self.policy = policy
        self.objective = objective
        self.conditioning = conditioning
        self.sampler = sampler
        self.processes = processes or Processes()
        self.models = Models(config, policy, objective, conditioning, autocast)
        self.accumulation = Accumulation(
            self.models, self.processes, trained_at_once(config, policy.backbone.device, sharded=policy.sharded),
            on_message=on_message, progress=progress,
        )  # fmt: skip
        self.updates = 0
        self._interrupt = interrupt
        self._look = look
        if self.section.bits == 8 and policy.weights_sharded:
            raise UserError("optimizer.bits: 8-bit moments are not supported for weights sharded by run.shard; use 32")
        self.adamw = make_adamw(policy.parameters.values(), self.section)

    @property
    def micro_batch(self) -> int:
        """Members per micro-batch, halved when memory runs out."""
        return self.accumulation.micro_batch

    # -- one pass -----------------------------------------------------------------------------------------------

    def step(
        self,
        batch: TrainingBatch,
        sigmas: Tensor,
        draws: Draws,
        *,
        time_weights: Tensor | None = None,
        interruptible: bool = True,
    ) -> list[UpdateResult]:
        """Run all updates of a pass over the groups of an iteration: groups are split evenly over updates, each update
        uses all timesteps [T].

        time_weights [T]: factors of the losses at each timestep, 1 if None;
        interruptible: raise Interrupted if any rank was asked to stop before the first update was made; not for a later
        pass, before which the iteration has updated the weights.
        """
        groups = len(batch.prompts)
        size = groups // self.section.updates
        results = []
        factors = None if time_weights is None else time_weights.tolist()
        for first in range(0, groups, size):
            update = self.prepare(batch, range(first, first + size), sigmas.tolist(), draws, factors)
            results.append(self.update(update, self._interrupt if interruptible and first == 0 else lambda: None))
        self.policy.forget_gradient()
        return results

    def prepare(
        self,
        batch: TrainingBatch,
        groups: range,
        sigmas: list[float],
        draws: Draws,
        time_weights: list[float] | None = None,
    ) -> Update:
        """Prepare the host-side data of an update from some groups of the batch."""
        active = active_members(batch, groups, skip_zero_weights=self.objective.skips_zero_weights)
        count, processes = sum(map(len, active)), self.processes
        local, split = local_members(batch, groups, active, self.section.updates, processes.rank, processes.count)
        steps = None
        if self.objective.needs_path:
            assert self.sampler is not None
            assert batch.paths
            steps = PathSteps(batch.paths, self.sampler)
        return Update(
            batch, groups, local, split, [bucket(self.policy.backbone, batch.prompts[g]) for g in groups], sigmas,
            draws, self.conditioning.rows, steps, self.config.timesteps.shared_noise,
            active=count, skipped=int(batch.scored[groups.start : groups.stop].sum()) - count,
            time_weights=time_weights,
        )  # fmt: skip

    def update(self, update: Update, interrupt: Callable[[], None] = lambda: None) -> UpdateResult:
        """Run one update at all timesteps; the gradient stays in the parameters."""
        return self.apply(self.accumulation.add(update, interrupt))

    def apply(self, gradient: Accumulated) -> UpdateResult:
        """Clip the accumulated gradient and update weights and averages, unless loss or gradient is not finite."""
        parameters = [p for p in self.policy.parameters.values() if p.grad is not None]
        rate = self.learning_rate(self.updates)
        if not parameters:  # no group had anything to learn from, which is not an error
            return UpdateResult(False, 0.0, rate, gradient)
        norm = self.policy.norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, self.section.max_grad_norm or torch.inf, norm)
        finite, value = self._look(torch.stack([(norm + gradient.loss).isfinite().to(norm.dtype), norm]))
        if not finite:
            return UpdateResult(True, value, rate, gradient)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        self.adamw.step()
        self.updates += 1
        self.policy.update_averages(self.updates)
        return UpdateResult(False, value, rate, gradient)

    def learning_rate(self, update: int) -> float:
        """Return the learning rate of update `update` (from 0)."""
        return learning_rate(self.section, update, self.config.run.iterations * self.section.updates_per_iteration)

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Return AdamW's state as `name/key` tensors; a parameter that was never updated has none."""
        names = {id(p): name for name, p in self.policy.parameters.items()}
        moments = {
            f"{names[id(p)]}/{key}": (names[id(p)], value)
            for p, s in self.adamw.state.items()
            for key, value in state_of(s).items()
        }
        return self.policy.full_tensors(moments)

    def load_state(self, state: Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Load the (name, tensor) pairs that `state` returned."""
        self.updates = updates
        self.adamw.state.clear()
        for key, tensor in state:
            name, _, moment = key.rpartition("/")
            restore(self.adamw, self.policy.parameters[name], moment, self.policy.local_shard(name, tensor))

    def is_finite(self) -> bool:
        """Return whether this rank's weights, moving averages and moments are finite (`Policy.is_finite`)."""
        states = (value for state in self.adamw.state.values() for value in state.values())
        return self.policy.is_finite(
            value for value in states if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        )
