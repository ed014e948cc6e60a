"""What dgpo-adaptive-tmin declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_timestep_policies"]

dgpo_contract = 3


@hookimpl
def dgpo_timestep_policies() -> Sequence[Component]:
    """Three ways to move t_min."""
    return [
        Component(
            "scheduled-t-min",
            "t_min (and t_max) by training progress.",
            "dgpo_adaptive_tmin.scheduled:ScheduledTmin",
            "dgpo_adaptive_tmin.options:ScheduledOptions",
        ),
        Component(
            "disagreement-t-min",
            "t_min above the noise that hides the artifacts of few-step samples, measured on a probe batch.",
            "dgpo_adaptive_tmin.disagreement:DisagreementTmin",
            "dgpo_adaptive_tmin.options:DisagreementOptions",
        ),
        Component(
            "dsm-gap-t-min",
            "t_min where the preference begins to be at work, by the policy's error on its own samples.",
            "dgpo_adaptive_tmin.dsm_gap:DsmGapTmin",
            "dgpo_adaptive_tmin.options:DsmGapOptions",
        ),
    ]
