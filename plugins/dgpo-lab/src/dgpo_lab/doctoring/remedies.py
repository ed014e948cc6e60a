"""Settings that several signs ask to change, and how far."""

from __future__ import annotations

from collections.abc import Iterable

from dgpo_core.config.overrides import apply_overrides
from dgpo_lab.doctoring.facts import Facts
from dgpo_lab.doctoring.findings import Change
from dgpo_schemas.loading import Document
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RunConfig

__all__ = [
    "FEWEST_GROUPS",
    "PUBLISHED_RATE",
    "held",
    "higher_rate",
    "lower_rate",
    "more_kl",
    "paper_weighting",
    "possible",
    "rounded",
    "slower",
]

FEWEST_GROUPS = 2
"""Groups of an iteration below which none are suggested: the gradient of a single one is that of one prompt."""

PUBLISHED_RATE = 3e-4
"""The published learning rate of a LoRA."""
PUBLISHED_KL = (1e-3, 0.02)
"""Published KL weights: for PickScore, for GenEval and OCR."""


def rounded(value: float, digits: int = 1) -> float:
    """To so many significant digits: nobody sets a learning rate to 0.000333."""
    return float(f"{value:.{digits}g}")


def possible(run: Facts, changes: Iterable[Change]) -> tuple[Change, ...]:
    """Those changes that, with the ones before them, leave a run file that `dgpo train` accepts, and that change it.

    What a remedy computes from a run's numbers may lie outside of what a setting allows; that is no advice.
    """
    document = Document("", run.config.model_dump(mode="json"), {})
    kept = []
    for change in changes:
        try:
            changed = apply_overrides(document, [change.argument])
            RunConfig.model_validate(changed.data)
        except (ConfigError, ValueError):
            continue
        if changed.data != document.data:
            kept.append(change)
            document = changed
    return tuple(kept)


def lower_rate(run: Facts) -> Change:
    """A third of the learning rate."""
    rate = run.config.optimizer.learning_rate
    return Change("optimizer.learning_rate", rate, rounded(rate / 3))


def higher_rate(run: Facts) -> Change:
    """The published learning rate of a LoRA, or three times one that is as high already, or of all weights."""
    rate = run.config.optimizer.learning_rate
    published = run.config.backbone.train == "lora" and rate < PUBLISHED_RATE
    return Change("optimizer.learning_rate", rate, PUBLISHED_RATE if published else rounded(3 * rate))


def more_kl(run: Facts) -> Change:
    """The next published KL weight, or twice one that is above them."""
    kl = run.config.objective.kl
    return Change("objective.kl", kl, next((known for known in PUBLISHED_KL if known > kl), 2 * kl))


def slower(run: Facts, _: object = None) -> tuple[Change, ...]:
    """Smaller steps, then a stronger hold on the reference."""
    return lower_rate(run), more_kl(run)


def held(run: Facts, _: object = None) -> tuple[Change, ...]:
    """A stronger hold on the reference, then smaller steps."""
    return more_kl(run), lower_rate(run)


def paper_weighting(run: Facts) -> tuple[Change, ...]:
    """The paper's weighting, if it is another one."""
    name = run.config.weighting.use
    return (Change("weighting", name, "abs-advantage"),) if name != "abs-advantage" else ()
