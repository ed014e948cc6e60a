"""Online Diffusion-DPO: each pair is the best and the worst sample of a group of rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_baselines.terms import refuse_unused, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["DiffusionDpo"]

PAIRS = "best-vs-worst"
"""The weighting that selects the pair."""


class DiffusionDpo(Objective):
    """L = -log sigmoid(-beta / 2 * [(dsm_w - dsm_ref_w) - (dsm_l - dsm_ref_l)]), w the best and l the worst member.

    Source: Diffusion-DPO, arXiv 2311.12908, eq. 14, with T and omega(lambda) absorbed in beta. As in the authors' code
    (SalesforceAIResearch/DiffusionDPO, train.py), the norm is a mean over the latent's dimensions and beta is halved.
    Both members share noise and time. Training is online: the pairs are rollouts, not samples of a data set.

    The signed weights of the members are 1 (best), -1 (worst) and 0. The two members of a pair may be in different
    micro-batches, so the loss has a gradient-equivalent form: with u the bracket, stopgrad(beta / 2 *
    sigmoid(beta / 2 * u)) * (dsm_w - dsm_l). This equals the objective `dgpo` with weighting `best-vs-worst` and
    beta_dgpo = beta * G / 2, except that `dgpo` divides its loss, and so its gradient, by beta_dgpo.
    """

    needs_statistic = True

    @property
    def needs_reference(self) -> bool:
        """Always true: the margin of a pair is relative to the reference."""
        return True

    @property
    def needs_base(self) -> bool:
        """True with a KL term."""
        return bool(self.section.kl > 0)

    @property
    def needs_old(self) -> bool:
        """Always false."""
        return False

    @property
    def skips_zero_weights(self) -> bool:
        """True without a KL term: only the members of the pair contribute to the loss."""
        return self.section.kl == 0

    def check(self, run: RunConfig) -> None:
        """Raise UserError unless the weighting selects pairs, and for settings that this objective does not use."""
        if run.weighting.use != PAIRS:
            raise UserError(
                f"weighting: {run.weighting.use}: {self.section.use} requires the best and the worst sample of each "
                f"group; set weighting: {PAIRS}"
            )
        refuse_unused(self.section, "clip", "clip_kl")

    def statistic(self, predictions: Predictions) -> Tensor:
        """Return each member's term of the margin u, [B]."""
        p = predictions
        assert p.reference is not None
        gap = p.error(p.velocity.detach(), p.target) - p.error(p.reference, p.target)
        return p.signed_weights * gap

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Compute the loss [B]; `statistic` is u.

        The engine averages over the members of a group, hence the factor `group_size`.
        """
        p, u = predictions, statistic
        assert p.reference is not None
        assert u is not None
        half = self.section.beta / 2
        dsm = p.error(p.velocity, p.target)
        loss = p.group_size * half * torch.sigmoid(half * u) * p.signed_weights * dsm
        metrics = {
            "dsm": dsm.detach(),
            "dsm_reference": p.error(p.reference, p.target),
            "sigmoid": torch.sigmoid(half * u),
            "pair_loss": -F.logsigmoid(-half * u),
            "pair_accuracy": (u < 0).to(dsm.dtype),
        }
        if p.base is not None:
            kl = velocity_kl(p)
            metrics["kl"] = kl.detach()
            if self.section.kl > 0:
                loss = loss + self.section.kl * kl
        return MemberLoss(loss, metrics)
