"""Hook implementations of dgpo-judge. This module must not import anything heavy."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_rewards"]

dgpo_contract = 3

NEEDS = "needs an OpenAI-compatible server (vLLM, SGLang); the judge's licence is its model's"


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare the judges of single samples and of groups, and the win rate under any other reward."""
    return [
        Component(
            "judge",
            "A vision-language model's answer about each sample: VQAScore, Soft-TIFA, rating, rubric or reading; "
            f"{NEEDS}",
            "dgpo_judge.reward:JudgeReward",
            "dgpo_judge.options:JudgeOptions",
        ),
        Component(
            "judge-pairs",
            f"Win rate in [0, 1] within the group, judged pair by pair in both orders; {NEEDS}",
            "dgpo_judge.group_rewards:PairsReward",
            "dgpo_judge.options:PairsOptions",
        ),
        Component(
            "judge-list",
            f"Mean rank in [0, 1] within the group, which is ranked as a whole in several orders; {NEEDS}",
            "dgpo_judge.group_rewards:ListReward",
            "dgpo_judge.options:ListOptions",
        ),
        Component(
            "pairwise",
            "Win rate in [0, 1] within the group under another reward, which thus counts by its order alone",
            "dgpo_judge.pairwise:PairwiseReward",
            "dgpo_judge.options:PairwiseOptions",
        ),
    ]
