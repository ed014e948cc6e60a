"""DGPO with regularizers of other methods: a trust region, a KL term at high noise, self-normalized errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgpo_baselines.terms import refuse_unused, self_normalized_error
from dgpo_core.builtin.objective import DirectGroupPreference
from dgpo_core.contracts import MemberLoss
from dgpo_core.errors import UserError
from dgpo_core.flow.groups import by_source, ranks
from dgpo_core.types import Predictions, ScoredGroups

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["RegularizedDgpo"]


class RegularizedDgpo(DirectGroupPreference):
    """The loss of `dgpo`, with options that are all off by default; then it is `dgpo`, bit for bit.

    * `trust_region`: in place of the clip. A member with D = mean (v - v_old)^2 > `trust_region` that is pushed further
      outwards, A > 0 and dsm < dsm_old or A <= 0 and dsm > dsm_old, has no gradient, but still contributes to S_g.
      Source: the mask of Flow-DPPO (arXiv 2606.11025), whose divergence of Gaussian steps is a multiple of D. The old
      policy is the fast EMA.
    * `kl_from`: the KL term applies at sigma >= `kl_from` only, where the composition of a sample is decided. Source:
      DiverseGRPO (arXiv 2512.21514), whose KL term applies in the first steps only.
    * `kl_uncertain`: the KL term applies only to this share of the iteration's samples, those with the largest U > 0:
      the share of samples that a sample beats by the sum of the rewards, minus the mean share that it beats by each
      reward of weight 0. Where other rewards do not confirm a high reward, it may be exploited. Shares are among the
      samples of the same prompt source; samples with equal U are treated alike; those that no reward of weight 0 has
      scored have no KL term. Source: GARDO (arXiv 2512.24138).
    * `adaptive`: dsm is that of x0^ divided by its mean magnitude, sigma mean (v - target)^2 / mean |v - target|, in
      S_g, in its gradient and in the clip. Source: arXiv 2602.04663.
    """

    @property
    def needs_old(self) -> bool:
        """True with clipping or a trust region."""
        return bool(self.options.trust_region is not None or super().needs_old)

    def check(self, run: RunConfig) -> None:
        """Raise UserError for a clip beside the trust region that replaces it."""
        super().check(run)
        if self.options.trust_region is not None:
            refuse_unused(self.section, "clip")
        if self.options.kl_uncertain is None:
            return
        if self.section.kl == 0:
            raise UserError("objective.options.kl_uncertain has no effect because objective.kl is 0; remove it")
        if all(reward.weight for reward in run.rewards):
            raise UserError(
                "objective.options.kl_uncertain compares with rewards of weight 0, of which the run has none: add one "
                "to `rewards` with `weight: 0`"
            )

    def kl_scales(self, groups: ScoredGroups) -> Tensor | None:
        """Return 1 for the most uncertain samples of each prompt source, 0 for the others, float64 [g, G]; or None."""
        if self.options.kl_uncertain is None:
            return None
        scales = torch.zeros_like(groups.rewards)
        for rows in by_source(groups.prompts).values():
            others = [
                values[rows].flatten()
                for label, values in groups.per_reward.items()
                if label in groups.counted and not groups.counted[label][rows[0]]
            ]
            scored = groups.scored[rows].flatten()
            scales[rows] = self._most_uncertain(groups.summed[rows].flatten(), others, scored).view(len(rows), -1)
        return scales

    def _most_uncertain(self, rewards: Tensor, others: Sequence[Tensor], scored: Tensor) -> Tensor:
        """Return 1 for the samples [n] of one source with a KL term, 0 for others."""
        by_others, raters = torch.zeros_like(rewards), torch.zeros_like(rewards)
        for values in others:
            rated = scored & values.isfinite()
            by_others += ranks(values[None], rated[None])[0]
            raters += rated
        uncertain = (ranks(rewards[None], scored[None])[0] - by_others / raters).masked_fill(raters == 0, -torch.inf)
        count = math.ceil(self.options.kl_uncertain * int(scored.sum()))
        if not count:
            return torch.zeros_like(rewards)
        # Equal samples are treated alike, whatever their order: there can be more of them than the share.
        smallest = uncertain.sort(descending=True).values[count - 1]
        return ((uncertain >= smallest) & (uncertain > 0)).to(rewards.dtype)

    def dsm(self, predictions: Predictions, velocity: Tensor) -> Tensor:
        """Return the denoising error of a velocity, [B], with gradient."""
        if self.options.adaptive:
            return self_normalized_error(predictions, velocity, of_x0=True)
        return super().dsm(predictions, velocity)

    def silenced(self, predictions: Predictions, dsm: Tensor) -> Tensor | None:
        """Return the members outside the trust region or the clip that are pushed outwards, bool [B], or None."""
        p = predictions
        if self.options.trust_region is None:
            return super().silenced(p, dsm)
        assert p.old is not None
        log_ratio = self.dsm(p, p.old) - dsm.detach()
        outwards = torch.where(p.advantages > 0, log_ratio > 0, log_ratio < 0)
        outside: Tensor = p.error(p.velocity.detach(), p.old) > self.options.trust_region
        return outwards & outside

    def kl_weight(self, predictions: Predictions) -> float | Tensor:
        """Return the weight of the KL term: 0 below `kl_from`."""
        weight, sigma = super().kl_weight(predictions), predictions.sigma
        return weight if self.options.kl_from == 0 else weight * (sigma >= self.options.kl_from).to(sigma.dtype)

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]; `statistic` is S_g of each member's group."""
        found = super().loss(predictions, statistic)
        if self.options.trust_region is None:
            return found
        p = predictions
        assert p.old is not None
        return MemberLoss(found.loss, {**found.metrics, "old_distance": p.error(p.velocity.detach(), p.old)})
