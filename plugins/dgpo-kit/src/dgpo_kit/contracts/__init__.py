"""Checks of the component contracts (`dgpo_core.contracts`), for any plugin. They do not require pytest.

`component_checks` yields all requirements of an installed component as named checks, which `dgpo plugins check` and
`dgpo_kit.contract_tests` run. The functions `check_...` take a component, or a function that builds it, and raise
AssertionError at the first violated requirement:

    def test_my_reward() -> None:
        check_reward(MyReward(MyOptions(), device=torch.device("cpu")), media, prompts)

B is the number of samples, G the number of members per group.
"""

from __future__ import annotations

from dgpo_kit.contracts._assertions import equal, global_state_left_alone, that
from dgpo_kit.contracts._backbone import backbone_checks, check_backbone
from dgpo_kit.contracts._check import Check, checks_of, run_all
from dgpo_kit.contracts._declarations import (
    HEAVY,
    check_declaration,
    check_light,
    declaration_checks,
    distribution_checks,
)
from dgpo_kit.contracts._group_reward import check_group_reward, group_reward_checks
from dgpo_kit.contracts._images import SIDE, SIZES, drawn, media_of_size
from dgpo_kit.contracts._objective import check_objective, objective_checks
from dgpo_kit.contracts._prompts import check_prompts, prompts_checks
from dgpo_kit.contracts._reward import check_reward, reward_checks
from dgpo_kit.contracts._sampler import check_sampler, sampler_checks
from dgpo_kit.contracts._suite import component_checks, components_of
from dgpo_kit.contracts._suites import check_suite, suite_checks
from dgpo_kit.contracts._timesteps import check_timesteps, timesteps_checks
from dgpo_kit.contracts._weighting import check_weighting, weighting_checks
from dgpo_kit.given import Given, NeedsInput

__all__ = [
    "HEAVY",
    "SIDE",
    "SIZES",
    "Check",
    "Given",
    "NeedsInput",
    "backbone_checks",
    "check_backbone",
    "check_declaration",
    "check_group_reward",
    "check_light",
    "check_objective",
    "check_prompts",
    "check_reward",
    "check_sampler",
    "check_suite",
    "check_timesteps",
    "check_weighting",
    "checks_of",
    "component_checks",
    "components_of",
    "declaration_checks",
    "distribution_checks",
    "drawn",
    "equal",
    "global_state_left_alone",
    "group_reward_checks",
    "media_of_size",
    "objective_checks",
    "prompts_checks",
    "reward_checks",
    "run_all",
    "sampler_checks",
    "suite_checks",
    "that",
    "timesteps_checks",
    "weighting_checks",
]
