"""Base classes that plugins implement. A run file selects each component by name.

Importing this module does not import torch. Tensor shapes use the letters defined in `dgpo_core.types`.
Each component is constructed once per run, with the arguments of its `__init__` here; `options` is an instance of the
pydantic model that the plugin declared.
"""

from __future__ import annotations

from dgpo_core.contracts.adapter import Adapter
from dgpo_core.contracts.backbone import Backbone
from dgpo_core.contracts.objective import MemberLoss, Objective
from dgpo_core.contracts.prompts import PromptSource
from dgpo_core.contracts.reward import AnyReward, GroupReward, RewardBase, RewardModel
from dgpo_core.contracts.sampler import Sampler, VelocityFn
from dgpo_core.contracts.suite import Suite, SuiteFile, task_means
from dgpo_core.contracts.timesteps import Probe, TimestepContext, TimestepPolicy
from dgpo_core.contracts.version import VERSION
from dgpo_core.contracts.weighting import AdvantageWeighting, WeighedGroup

__all__ = [
    "VERSION",
    "Adapter",
    "AdvantageWeighting",
    "AnyReward",
    "Backbone",
    "GroupReward",
    "MemberLoss",
    "Objective",
    "Probe",
    "PromptSource",
    "RewardBase",
    "RewardModel",
    "Sampler",
    "Suite",
    "SuiteFile",
    "TimestepContext",
    "TimestepPolicy",
    "VelocityFn",
    "WeighedGroup",
    "task_means",
]
