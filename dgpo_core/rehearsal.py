"""A dry run: everything built, one small group drawn and scored, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.prompts import of_iteration
from dgpo_core.scoring import Scorer
from dgpo_core.trainer import Trainer
from dgpo_core.types import Prompt
from dgpo_schemas.text import clean

__all__ = ["rehearse"]

SHOWN = 200
"""Characters of the prompt that was drawn."""
MEMBERS = 2
"""Samples drawn of one prompt."""


def rehearse(trainer: Trainer) -> dict[str, Any]:
    """Build the run, draw and score one small group of each split with its rewards; returns what was found.

    Raises UserError for what a run could not start with, and for a reward or guard that scores none of its samples.
    """
    engine = trainer.engine
    try:
        trainer.build()
        prompt, rewards = _score_one(trainer, engine.train_prompts, engine.scorer)
        if engine.heldout_prompts:
            _score_one(trainer, engine.heldout_prompts, engine.evaluation_scorer)
        found = {**engine.facts(), "prompt": clean(prompt.text, SHOWN), "rewards": rewards}
        for note in engine.notes():
            trainer.progress.warn(f"warning: {note}")
        return found
    finally:
        engine.close()


def _score_one(trainer: Trainer, prompts: Sequence[Prompt], scorer: Scorer) -> tuple[Prompt, dict[str, list[float]]]:
    """One group's scores by label."""
    draws = trainer.engine.draws
    chosen = of_iteration(prompts, 0, 1, draws.at("prompt order"))
    rollout = next(trainer.roller.roll_out(chosen, MEMBERS, draws.at("dry run"), "policy"))
    scorer.submit(trainer.engine.backbone.decode(rollout.x0), rollout.prompts)
    scored = scorer.collect()
    for label, values in scored.values.items():
        if bool(values.isnan().all()):
            why = scorer.failure_of(label) or f"see its diagnostics: {scored.diagnostics[label]}"
            raise UserError(f"dry run: reward {label} scored none of {len(values)} samples: {why}")
    return chosen[0], {label: values.tolist() for label, values in scored.values.items()}
