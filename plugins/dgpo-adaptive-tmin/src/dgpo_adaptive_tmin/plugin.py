"""Plugin declarations of dgpo-adaptive-tmin. Do not import torch here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_timestep_policies"]

dgpo_contract = 3


@hookimpl
def dgpo_timestep_policies() -> Sequence[Component]:
    """Declare the timestep policies."""
    return [
        Component(
            "scheduled-t-min",
            "t_min (and t_max) on a schedule over training.",
            "dgpo_adaptive_tmin.scheduled:ScheduledTmin",
            "dgpo_adaptive_tmin.options:ScheduledOptions",
        ),
        Component(
            "disagreement-t-min",
            "t_min at the noise level that hides the artifacts of few-step samples, measured on a probe batch.",
            "dgpo_adaptive_tmin.disagreement:DisagreementTmin",
            "dgpo_adaptive_tmin.options:DisagreementOptions",
        ),
        Component(
            "dsm-gap-t-min",
            "t_min at the lower end of the times where the preference acts, measured on the policy's samples.",
            "dgpo_adaptive_tmin.dsm_gap:DsmGapTmin",
            "dgpo_adaptive_tmin.options:DsmGapOptions",
        ),
    ]
