"""What plugins implement. Every class here is a component that a run file can choose by name.

Light on purpose: importing this module does not import torch. Tensors follow `types` (its legend of letters).
Every component is built once per run, by the keywords in its `__init__` here; `options` is an instance of the model
that the plugin declared.
"""

from __future__ import annotations

from dgpo_core.contracts.adapter import Adapter
from dgpo_core.contracts.backbone import Backbone
from dgpo_core.contracts.objective import MemberLoss, Objective
from dgpo_core.contracts.prompts import PromptSource
from dgpo_core.contracts.reward import AnyReward, GroupReward, RewardBase, RewardModel
from dgpo_core.contracts.sampler import Sampler, VelocityFn
from dgpo_core.contracts.timesteps import Probe, TimestepContext, TimestepPolicy
from dgpo_core.contracts.version import VERSION
from dgpo_core.contracts.weighting import AdvantageWeighting

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
    "TimestepContext",
    "TimestepPolicy",
    "VelocityFn",
]
