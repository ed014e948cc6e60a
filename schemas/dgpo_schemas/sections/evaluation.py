"""The section `evaluation`, and the monitors against reward hacking in it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Float, Int, StrictModel, Use
from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["EvaluationSection", "ManyStepSection", "MonitorsSection"]


class MonitorsSection(StrictModel):
    """What must not get worse while the target rises: statistics of the media, always, and rewards not trained on."""

    rewards: list[RewardBlock] = Field(
        default_factory=list, description="Out-of-domain rewards, scored at every evaluation and never trained on."
    )
    alarm: Literal["log", "stop", "off"] = Field(
        default="log",
        json_schema_extra=ANYTIME,
        description="When the target has risen and a monitor has left its tolerance since the first evaluation: log, "
        "or stop the run with its state saved.",
    )
    tolerances: dict[str, Annotated[Float, Field(ge=0)]] = Field(
        default_factory=dict,
        json_schema_extra=ANYTIME,
        description="Change of a monitor, in its own units, that is let pass; by default none for a reward and a share "
        "of its first value for a statistic (diversity, saturation, edge_density, dark_pixels, step_disagreement, "
        "many_step_sharpness). Only changes beyond the 95 % intervals count.",
    )


class ManyStepSection(StrictModel):
    """Some samples of an evaluation again, from the same noise, in many steps: shows artifacts of few steps."""

    steps: Int = Field(ge=2, le=1000, description="Solver steps, many more than those of evaluation.")
    prompts: Int = Field(default=32, ge=1, le=10**9, description="Prompts, one sample of each.")


class EvaluationSection(StrictModel):
    """Evaluation on the held-out prompts."""

    every: Int = Field(
        default=0, ge=0, le=10**9, description="Iterations between evaluations; 0: only when the run ends."
    )
    at_start: bool = Field(default=True, description="Also evaluate the base model before training.")
    prompts: Int = Field(
        default=300,
        ge=1,
        le=10**9,
        description="Held-out prompts to use, at most; of several sources one each at least.",
    )
    samples_per_prompt: Int = Field(default=1, ge=1, le=10_000, description="Samples of each prompt.")
    steps: Int | None = Field(default=None, ge=1, le=1000, description="Solver steps; by default the rollouts'.")
    guidance: Float | None = Field(
        default=None, ge=1, le=1000, description="Guidance scale; by default that of the rollouts."
    )
    sampler: Use | None = Field(
        default=None,
        description="Sampler; by default the rollouts'. Rollouts that are random on purpose want a deterministic one.",
    )
    rewards: list[RewardBlock] | None = Field(
        default=None, min_length=1, description="Rewards to evaluate with; by default those trained on."
    )
    model: Literal["policy", "ema_fast", "ema"] = Field(
        default="ema",
        description="Weights to evaluate: the policy, its fast EMA (old) or its EMA, before whose first move the "
        "policy is evaluated.",
    )
    monitors: MonitorsSection = Field(default_factory=MonitorsSection, description="Signs of reward hacking.")
    many_step: ManyStepSection | None = Field(
        default=None,
        description="Also measure `step_disagreement` (distance of samples to the same noise solved in many steps) and "
        "`many_step_sharpness` (of the latter).",
    )
    images: Int = Field(
        default=12,
        ge=0,
        le=10**6,
        json_schema_extra=ANYTIME,
        description="Images kept of each evaluation, always of the same noise.",
    )
