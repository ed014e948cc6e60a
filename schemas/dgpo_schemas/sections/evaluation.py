"""The section `evaluation`, with its monitors for reward hacking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, Float, Int, StrictModel, Use
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.sections.rollout import GuidanceInterval

__all__ = ["EvaluationSection", "ManyStepSection", "MonitorsSection"]


class MonitorsSection(StrictModel):
    """Monitors for reward hacking: values that must not get worse while the target reward rises. Image statistics are
    always monitored; out-of-domain rewards are optional."""

    rewards: list[RewardBlock] = Field(
        default_factory=list,
        description="Out-of-domain rewards, computed at every evaluation and never trained on.",
    )
    alarm: Literal["log", "stop", "off"] = Field(
        default="log",
        json_schema_extra=ANYTIME,
        description="Action if, since the first evaluation, the target has risen and a monitor has changed by more "
        "than its tolerance: log a warning, save the state and stop the run, or do nothing.",
    )
    tolerances: dict[str, Annotated[Float, Field(ge=0)]] = Field(
        default_factory=dict,
        json_schema_extra=ANYTIME,
        description="Allowed change of each monitor, in units of the monitor. The default is 0 for a reward, and a "
        "fraction of the first value for a statistic (diversity, saturation, edge_density, dark_pixels, "
        "step_disagreement, many_step_sharpness). Changes within the 95% confidence intervals are ignored.",
    )


class ManyStepSection(StrictModel):
    """Solve some evaluation samples again, from the same noise, with many steps. The comparison reveals artifacts of
    few-step sampling."""

    steps: Int = Field(
        ge=2,
        le=1000,
        description="Number of solver steps (`num_inference_steps` in diffusers); use many more than evaluation.steps.",
    )
    prompts: Int = Field(default=32, ge=1, le=10**9, description="Number of prompts, with one sample each.")


class EvaluationSection(StrictModel):
    """Settings of the evaluation on held-out prompts."""

    every: Int = Field(
        default=0, ge=0, le=10**9, description="Iterations between evaluations; 0 evaluates only at the end of the run."
    )
    at_start: bool = Field(default=True, description="Also evaluate the base model before training starts.")
    prompts: Int = Field(
        default=300,
        ge=1,
        le=10**9,
        description="Maximum number of held-out prompts; with several sources, at least one prompt of each is used.",
    )
    samples_per_prompt: Int = Field(default=1, ge=1, le=10_000, description="Number of samples per prompt.")
    steps: Int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Number of solver steps per sample (`num_inference_steps` in diffusers); default: rollout.steps.",
    )
    guidance: Float | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Classifier-free guidance scale (`guidance_scale` in diffusers); default: rollout.guidance.",
    )
    guidance_interval: GuidanceInterval | None = Field(
        default=None,
        description="Guide only solver steps with low <= sigma <= high, given as [low, high]; [0, 1] guides all steps. "
        "Default: rollout.guidance_interval.",
    )
    sampler: Use | None = Field(
        default=None,
        description="Sampler; default: rollout.sampler. Use a deterministic sampler here if the rollouts' is "
        "stochastic.",
    )
    rewards: list[RewardBlock] | None = Field(
        default=None, min_length=1, description="Rewards to evaluate with; default: the rewards trained on."
    )
    model: Literal["policy", "ema_fast", "ema"] = Field(
        default="ema",
        description="Model to evaluate: the policy, its fast EMA (the old policy), or its EMA. Before the first update "
        "of the EMA, the policy is evaluated in its place.",
    )
    monitors: MonitorsSection = Field(default_factory=MonitorsSection, description="Monitors for reward hacking.")
    many_step: ManyStepSection | None = Field(
        default=None,
        description="Also measure `step_disagreement`, the distance of samples to many-step solutions from the same "
        "noise, and `many_step_sharpness`, the sharpness of the latter.",
    )
    images: Int = Field(
        default=12,
        ge=0,
        le=10**6,
        json_schema_extra=ANYTIME,
        description="Number of images to keep from each evaluation; each uses the same noise every time.",
    )
