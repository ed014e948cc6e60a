"""The worked example of docs/how-dgpo-works.md: one group of four samples, at one time sigma, in float64 on paper."""

from __future__ import annotations

import math

__all__ = ["BETA", "EPSILON", "ERRORS", "REFERENCE_ERRORS", "REWARDS", "advantages", "preference", "sigmoid"]

REWARDS = (1.0, 0.75, 0.25, 0.0)
REFERENCE_ERRORS = (0.40, 0.50, 0.45, 0.55)
"""Denoising errors of the reference model, one for each sample."""
ERRORS = (0.38, 0.49, 0.46, 0.57)
"""The same of the policy, after some updates: smaller for the better samples, larger for the worse ones."""
BETA = 100.0
EPSILON = 1e-4
"""`advantages.epsilon`."""


def advantages() -> list[float]:
    """Return (reward - mean) / (std + epsilon). With the weighting w = |A| these are the signed weights too."""
    mean = sum(REWARDS) / len(REWARDS)
    std = math.sqrt(sum((reward - mean) ** 2 for reward in REWARDS) / len(REWARDS))
    return [(reward - mean) / (std + EPSILON) for reward in REWARDS]


def preference(errors: tuple[float, ...]) -> float:
    """Return S = beta / G * sum of c * (dsm - dsm_ref)."""
    changes = (error - reference for error, reference in zip(errors, REFERENCE_ERRORS, strict=True))
    return BETA / len(REWARDS) * sum(c * change for c, change in zip(advantages(), changes, strict=True))


def sigmoid(value: float) -> float:
    """Return 1 / (1 + e^-value)."""
    return 1 / (1 + math.exp(-value))
