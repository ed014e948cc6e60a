"""Predictions of the models that an objective compares: the policy, the base model and the fast EMA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_core.flow.velocity import guidance_at
from dgpo_core.plugins import contract_checks
from dgpo_core.training.microbatches import Members, MicroBatch, Update
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_core.contracts import Objective
    from dgpo_core.training.policy import ConditioningCache, ModelName, Policy
    from dgpo_schemas.run import RunConfig

__all__ = ["Models"]


@dataclass(frozen=True)
class Models:
    """Computes the predictions of a policy's models that the objective and its section require."""

    config: RunConfig
    policy: Policy
    objective: Objective
    conditioning: ConditioningCache
    autocast: Callable[[], AbstractContextManager[object]]

    def _guidance(self, b: MicroBatch) -> float:
        """Return the guidance scale in training: step probabilities of path objectives depend on the velocity of the
        rollouts, with their scale at this step's time."""
        if b.step is None or not self.objective.needs_path:
            return 1.0
        rollout = self.config.rollout
        return guidance_at(b.step.sigma, rollout.guidance, rollout.guidance_interval)

    def others(self, *, statistic_only: bool = False) -> list[ModelName]:
        """The models to run besides the policy, for the loss or for the statistic alone.

        Each model runs once, even if it has two uses: a frozen reference is also the base model of the KL term, a
        dynamic one is the fast EMA. The fast EMA does not run while it has the policy's weights.
        """
        wanted = self._wanted(statistic_only=statistic_only)
        return [model for model in wanted if model != "ema_fast" or not self.policy.fast_is_policy]

    def _wanted(self, *, statistic_only: bool) -> list[ModelName]:
        """The models besides the policy whose predictions the objective requires."""
        objective, reference = self.objective, self.config.objective.reference
        dynamic = reference == "ema_fast"
        frozen: ModelName = reference if reference in ("start", "reset") else "base"
        wanted: dict[ModelName, bool] = {
            "ema_fast": (objective.needs_old and not statistic_only) or (objective.needs_reference and dynamic),
            frozen: (objective.needs_base and not statistic_only) or (objective.needs_reference and not dynamic),
        }
        return [model for model, needed in wanted.items() if needed]

    @torch.no_grad()
    def at(self, update: Update, members: Members, t: int, *, statistic_only: bool = False) -> MicroBatch:
        """Return the members at one timestep with the other models' predictions."""
        b = update.at(members, t)
        predictions: dict[str, Tensor] = {}
        for model in self.others(statistic_only=statistic_only):
            # At most one of the two scales is not 1.
            old = model == "ema_fast"
            guidance = self._guidance(b) if old else max(self._guidance(b), self.config.objective.kl_cfg)
            with self.policy.activate(model):
                predictions["old" if old else "base"] = self._velocity(b, guidance)
        loss_weight = contract_checks.loss_weight(self.policy.backbone, b.sigma)
        return replace(b, others=self._with_reference(predictions), loss_weight=loss_weight)

    def predictions(self, b: MicroBatch) -> Predictions:
        """Return the objective's input, with the policy's prediction as `velocity`, and also as the fast EMA's while
        that has the policy's weights."""
        velocity = self._velocity(b, self._guidance(b))
        if self.policy.fast_is_policy and "ema_fast" in self._wanted(statistic_only=False):
            b = replace(b, others=self._with_reference({**b.others, "old": velocity.detach()}))
        return b.predictions(velocity)

    def _with_reference(self, predictions: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the reference's prediction, if that of its model is known."""
        source = "old" if self.config.objective.reference == "ema_fast" else "base"
        if self.objective.needs_reference and source in predictions:
            predictions["reference"] = predictions[source]
        return predictions

    def _velocity(self, b: MicroBatch, guidance: float) -> Tensor:
        # Autocast is entered for each model, because its cache is keyed by parameters, whose data change with the
        # model. Prompts are always encoded outside of autocast.
        unconditional = self.conditioning.unconditional(b.members.prompts) if guidance != 1.0 else None
        with self.autocast():
            return self.policy.velocity(b.x_sigma, b.sigma, b.members.conditioning, unconditional, guidance)
