"""What dgpo-geneval declares. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Part
from dgpo_geneval.options import GenEvalOptions

__all__ = ["dgpo_rewards"]


@hookimpl
def dgpo_rewards() -> Sequence[Part]:
    """The three variants, one reward each."""
    return [
        Part(
            name="geneval",
            summary="GenEval for training: share of the prompt's demands that are met, in [0, 1]",
            implementation="dgpo_geneval.reward:GenEvalReward",
            options=GenEvalOptions,
        ),
        Part(
            name="geneval-official",
            summary="GenEval as the benchmark scores it: 0 or 1",
            implementation="dgpo_geneval.reward:GenEvalOfficialReward",
            options=GenEvalOptions,
        ),
        Part(
            name="geneval-flowgrpo",
            summary="GenEval as Flow-GRPO and DGPO trained on it, known defects included, to reproduce their curves",
            implementation="dgpo_geneval.reward:GenEvalFlowGRPOReward",
            options=GenEvalOptions,
        ),
    ]
