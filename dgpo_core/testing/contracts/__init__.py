"""Checks that a part keeps its contract (`dgpo_core.contracts`), for the tests of plugins.

A check takes a built part, or what builds one, and raises AssertionError saying what was promised. None needs pytest:

    def test_my_reward() -> None:
        check_reward(MyReward(MyOptions(), device=torch.device("cpu")), media, prompts)

Legend: B samples, G members of a group.
"""

from __future__ import annotations

from dgpo_core.testing.contracts._backbone import check_backbone
from dgpo_core.testing.contracts._declarations import HEAVY, check_declaration, check_light
from dgpo_core.testing.contracts._prompts import check_prompts
from dgpo_core.testing.contracts._reward import check_detector, check_reward
from dgpo_core.testing.contracts._sampler import check_sampler
from dgpo_core.testing.contracts._training import check_objective, check_timesteps, check_weighting

__all__ = [
    "HEAVY",
    "check_backbone",
    "check_declaration",
    "check_detector",
    "check_light",
    "check_objective",
    "check_prompts",
    "check_reward",
    "check_sampler",
    "check_timesteps",
    "check_weighting",
]
