"""Changes of settings that several rules suggest."""

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
"""Minimum number of groups to suggest: the gradient of a single group depends on a single prompt."""

PUBLISHED_RATE = 3e-4
"""The published learning rate for LoRA."""
PUBLISHED_KL = (1e-3, 0.02)
"""Published KL weights: for PickScore, and for GenEval and OCR."""


def rounded(value: float, digits: int = 1) -> float:
    """Round to `digits` significant digits, because nobody sets a learning rate to 0.000333."""
    return float(f"{value:.{digits}g}")


def possible(run: Facts, changes: Iterable[Change]) -> tuple[Change, ...]:
    """Keep the changes that have an effect and, together with those before them, give a run file that validates.

    Values that are computed from a run's numbers may be outside of the allowed range of a setting.
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
    """Suggest a third of the learning rate."""
    rate = run.config.optimizer.learning_rate
    return Change("optimizer.learning_rate", rate, rounded(rate / 3))


def higher_rate(run: Facts) -> Change:
    """Suggest the published learning rate for LoRA, or three times a rate that is that high or is not for LoRA."""
    rate = run.config.optimizer.learning_rate
    published = run.config.backbone.train == "lora" and rate < PUBLISHED_RATE
    return Change("optimizer.learning_rate", rate, PUBLISHED_RATE if published else rounded(3 * rate))


def more_kl(run: Facts) -> Change:
    """Suggest the next higher published KL weight, or twice the present one if it is above them all."""
    kl = run.config.objective.kl
    return Change("objective.kl", kl, next((known for known in PUBLISHED_KL if known > kl), 2 * kl))


def slower(run: Facts, _: object = None) -> tuple[Change, ...]:
    """Suggest a lower learning rate, then a larger KL weight."""
    return lower_rate(run), more_kl(run)


def held(run: Facts, _: object = None) -> tuple[Change, ...]:
    """Suggest a larger KL weight, then a lower learning rate."""
    return more_kl(run), lower_rate(run)


def paper_weighting(run: Facts) -> tuple[Change, ...]:
    """Suggest the paper's weighting if the run uses another one."""
    name = run.config.weighting.use
    return (Change("weighting", name, "abs-advantage"),) if name != "abs-advantage" else ()
