"""Updates of the policy's weights: the gradient of some groups, AdamW, the moving averages."""

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
from dgpo_core.training.microbatches import Update, active_members, shared
from dgpo_core.training.models import Models
from dgpo_core.types import TrainingBatch

if TYPE_CHECKING:
    from dgpo_core.contracts import Objective, Sampler
    from dgpo_core.training.policy import ConditioningCache, Policy
    from dgpo_schemas.run import RunConfig

__all__ = ["Optimizer", "UpdateResult"]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update did. grad_norm is before clipping; nan-free only if `skipped` is False."""

    skipped: bool
    grad_norm: float
    learning_rate: float
    gradient: Accumulated


class Optimizer:
    """AdamW on the policy's weights, fed with the objective's gradient.

    sampler: the one that drew the paths, for objectives that need them; look: the values of a tensor of the device,
    which an update asks for once, at its end. For the others see `Accumulation`.
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
            self.models, self.processes, config.optimizer.micro_batch or max(config.rollout.group_size, 1),
            on_message=on_message, progress=progress,
        )  # fmt: skip
        self.updates = 0
        self._interrupt = interrupt
        self._look = look
        if self.section.bits == 8 and policy.weights_sharded:
            raise UserError("optimizer.bits: weights that run.shard spreads over processes have moments of 32 bits")
        self.adamw = make_adamw(policy.parameters.values(), self.section)

    @property
    def micro_batch(self) -> int:
        """Members at a time, which become fewer where memory runs out."""
        return self.accumulation.micro_batch

    # -- one iteration ------------------------------------------------------------------------------------------

    def step(self, batch: TrainingBatch, sigmas: Tensor, draws: Draws) -> list[UpdateResult]:
        """All updates of an iteration: its groups are split evenly, every update takes all timesteps [T].

        Raises Interrupted if this process, or another, was asked to stop before the first of them was made.
        """
        groups = len(batch.prompts)
        size = groups // self.section.updates
        results = []
        for first in range(0, groups, size):
            update = self.prepare(batch, range(first, first + size), sigmas.tolist(), draws)
            results.append(self.update(update, self._interrupt if first == 0 else lambda: None))
        self.policy.forget_gradient()
        return results

    def prepare(self, batch: TrainingBatch, groups: range, sigmas: list[float], draws: Draws) -> Update:
        """What an update from some groups of the batch works on: all that has to be known on the host."""
        active = active_members(batch, groups, skip_zero_weights=self.objective.skips_zero_weights)
        count, processes = sum(map(len, active)), self.processes
        own, split = shared(batch, groups, active, self.section.updates, processes.rank, processes.count)
        steps = None
        if self.objective.needs_path:
            assert self.sampler is not None
            assert batch.paths
            steps = PathSteps(batch.paths, self.sampler)
        return Update(
            batch, groups, own, split, [bucket(self.policy.backbone, batch.prompts[g]) for g in groups], sigmas, draws,
            self.conditioning.rows, steps, self.config.timesteps.shared_noise,
            active=count, skipped=int(batch.scored[groups.start : groups.stop].sum()) - count,
        )  # fmt: skip

    def update(self, update: Update, interrupt: Callable[[], None] = lambda: None) -> UpdateResult:
        """One update, at all timesteps; the gradient is left in place."""
        return self.apply(self.accumulation.add(update, interrupt))

    def apply(self, gradient: Accumulated) -> UpdateResult:
        """Clip the gradient that is in place, and move weights and averages by it, unless it is not finite."""
        parameters = [p for p in self.policy.parameters.values() if p.grad is not None]
        rate = self.learning_rate(self.updates)
        if not parameters:  # every group was skipped: nothing to learn from, and nothing wrong
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
        """Learning rate of update number `update`, counted from 0."""
        return learning_rate(self.section, update, self.config.run.iterations * self.section.updates)

    # -- state --------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """AdamW's moments as `name/key` tensors; a parameter that was never updated has none."""
        names = {id(p): name for name, p in self.policy.parameters.items()}
        moments = {
            f"{names[id(p)]}/{key}": (names[id(p)], value)
            for p, s in self.adamw.state.items()
            for key, value in state_of(s).items()
        }
        return self.policy.whole(moments)

    def load_state(self, state: Iterable[tuple[str, Tensor]], updates: int) -> None:
        """Restore what `state` returned, from its names and tensors."""
        self.updates = updates
        self.adamw.state.clear()
        for key, tensor in state:
            name, _, moment = key.rpartition("/")
            restore(self.adamw, self.policy.parameters[name], moment, self.policy.share(name, tensor))

    def sound(self) -> bool:
        """Whether weights, moving averages and moments are numbers to go on with (`Policy.sound`), in this process."""
        states = (value for state in self.adamw.state.values() for value in state.values())
        return self.policy.sound(
            value for value in states if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        )
