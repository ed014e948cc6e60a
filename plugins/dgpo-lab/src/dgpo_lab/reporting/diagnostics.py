"""Metrics of training that get a figure in reports and live pages, with what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["COUNTS", "OPTIMIZATION", "Diagnostic"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A metric that gets a panel: line names mapped to metric columns, and what the metric means."""

    title: str
    note: str
    columns: Mapping[str, str]
    unit: str
    floor: float | None = 0.0
    whole: bool = False
    steps: bool = False


OPTIMIZATION = (
    Diagnostic("KL", "mean squared distance between the velocities of the policy and the base model, or "
               "the reference `start` or `reset`", {"kl": "kl"}, "mean (v − v_base)²"),
    Diagnostic("Denoising error", "of the policy and of the reference, on the same noise",
               {"policy": "dsm", "reference": "dsm_reference"}, "mean squared error", None),
    Diagnostic("σ(S_g)", "weight of a group's gradient: 0.5 at the start, approaching 0 as the policy prefers the "
               "samples with the higher rewards", {"sigmoid": "sigmoid"}, "mean", None),
    Diagnostic("Clip fraction", "fraction of samples whose gradient was clipped", {"clipped": "clip_fraction"},
               "fraction of samples"),
    Diagnostic("Gradient norm", "before clipping", {"norm": "grad_norm"}, "norm"),
    Diagnostic("Change of the weights", "norm of the adapter's weights, or of the change of all weights",
               {"norm": "change_norm"}, "norm"),
    Diagnostic("Zero-variance groups", "groups whose rewards are all equal; they give no gradient",
               {"groups": "zero_variance_groups"}, "groups per iteration", whole=True),
    Diagnostic("Residual", "mean |sum of signed weights| of a group; 0 if the partition function cancels",
               {"residual": "residual"}, "|Σ c|"),
    Diagnostic("Diversity", "mean pairwise distance within groups; mode collapse shows here first",
               {"diversity": "diversity"}, "RMS of pixels in [0, 1]", None),
)  # fmt: skip

COUNTS = (
    Diagnostic("Missing rewards", "samples that could not be scored", {"missing": "missing_rewards"},
               "samples per iteration", whole=True),
    Diagnostic("Skipped updates", "because of non-finite losses or gradients, cumulative",
               {"skipped": "skipped_updates"}, "updates", whole=True),
    Diagnostic("Learning rate", "of the last update in the iteration", {"rate": "learning_rate"}, ""),
)  # fmt: skip
