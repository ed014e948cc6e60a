"""Diffusion-DPO on pairs that the policy draws itself: the best of a group against its worst."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_baselines.terms import refuse_in_vain, velocity_kl
from dgpo_core.contracts import MemberLoss, Objective
from dgpo_core.errors import UserError
from dgpo_core.types import Predictions

if TYPE_CHECKING:
    from dgpo_schemas.run import RunConfig

__all__ = ["DiffusionDpo"]

PAIRS = "best-vs-worst"
"""The weighting that chooses the pair."""


class DiffusionDpo(Objective):
    """L = -log sigmoid(-beta / 2 * [(dsm_w - dsm_ref_w) - (dsm_l - dsm_ref_l)]), w the best and l the worst member.

    Diffusion-DPO, arXiv 2311.12908, eq. 14, with T and omega(lambda) absorbed in beta and the mean over the latent's
    dimensions in the place of the norm, as in the authors' code (SalesforceAIResearch/DiffusionDPO, train.py), which
    has the 1/2; both members share noise and time. Online, so without that paper's data set.

    The members are told apart by their signed weights, 1, -1 and 0. A pair may be in different micro-batches, so the
    loss is written in its gradient-equivalent form: with u the bracket, stopgrad(beta / 2 * sigmoid(beta / 2 * u)) *
    (dsm_w - dsm_l). It is objective `dgpo` with weighting `best-vs-worst` and beta_dgpo = beta * G / 2, whose gradient
    is smaller by the factor beta_dgpo, by which that objective divides its loss.
    """

    needs_statistic = True

    @property
    def needs_reference(self) -> bool:
        """Always: the pair's margin is relative to the reference."""
        return True

    @property
    def needs_base(self) -> bool:
        """Only the KL term looks at it."""
        return bool(self.section.kl > 0)

    @property
    def needs_old(self) -> bool:
        """Never."""
        return False

    @property
    def skips_zero_weights(self) -> bool:
        """Only the pair counts; only a KL term would still pull on the others."""
        return self.section.kl == 0

    def check(self, run: RunConfig) -> None:
        """Raise UserError for a weighting that makes no pairs, and for settings without effect."""
        if run.weighting.use != PAIRS:
            raise UserError(
                f"weighting: {run.weighting.use}: {self.section.use} learns from the best and the worst of each group; "
                f"set weighting: {PAIRS}"
            )
        refuse_in_vain(self.section, "clip", "clip_kl")

    def statistic(self, predictions: Predictions) -> Tensor:
        """Shares [B] of the margin u of a member's pair."""
        p = predictions
        assert p.reference is not None
        gap = p.error(p.velocity.detach(), p.target) - p.error(p.reference, p.target)
        return p.signed_weights * gap

    def loss(self, predictions: Predictions, statistic: Tensor | None) -> MemberLoss:
        """Loss [B]; `statistic` is u. The engine takes means over the members of a group, of which a pair is two: hence
        the factor `group_size`."""
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
