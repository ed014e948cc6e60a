"""Settings that several signs ask to change, and how far."""

from __future__ import annotations

from dgpo_cli.doctoring.facts import Facts
from dgpo_cli.doctoring.findings import Change

__all__ = ["PUBLISHED_RATE", "higher_rate", "lower_rate", "more_kl", "paper_weighting", "rounded"]

PUBLISHED_RATE = 3e-4
"""The published learning rate of a LoRA."""
PUBLISHED_KL = (1e-3, 0.02)
"""Published KL weights: for PickScore, for GenEval and OCR."""


def rounded(value: float, digits: int = 1) -> float:
    """To so many significant digits: nobody sets a learning rate to 0.000333."""
    return float(f"{value:.{digits}g}")


def lower_rate(run: Facts) -> Change:
    """A third of the learning rate."""
    rate = run.config.optimiser.learning_rate
    return Change("optimiser.learning_rate", rate, rounded(rate / 3))


def higher_rate(run: Facts) -> Change:
    """The published learning rate, or three times one that is as high already."""
    rate = run.config.optimiser.learning_rate
    return Change("optimiser.learning_rate", rate, PUBLISHED_RATE if rate < PUBLISHED_RATE else rounded(3 * rate))


def more_kl(run: Facts) -> Change:
    """The next published KL weight, or twice one that is above them."""
    kl = run.config.objective.kl
    return Change("objective.kl", kl, next((known for known in PUBLISHED_KL if known > kl), 2 * kl))


def paper_weighting(run: Facts) -> tuple[Change, ...]:
    """The paper's weighting, if it is another one."""
    name = run.config.weighting.use
    return (Change("weighting", name, "abs-advantage"),) if name != "abs-advantage" else ()
