"""The section `evaluation`, with its monitors for reward hacking."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import ANYTIME, Float, Int, ShortForm, StrictModel, Use
from dgpo_schemas.places import PathText
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.sections.rollout import GuidanceInterval

__all__ = ["WORDING", "EvaluationSection", "ManyStepSection", "MonitorsSection", "WordingSection"]

WORDING = ("reworded", "wording_gap")
"""The monitors of wording; each is followed by a dot and the label of a reward."""


class WordingSection(StrictModel):
    """Held-out prompts in other words, from a file (`file`) or from a plugin's templates (`use`). Exactly one of the
    two is required."""

    file: PathText | None = Field(
        default=None,
        description="Path of a .jsonl file: objects with a held-out `prompt` and the same in other words, `reworded`.",
    )
    use: str | None = Field(
        default=None, description="Name of a prompt generator that can put prompts of its format in other words."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the prompt generator.")

    @model_validator(mode="after")
    def _one_origin(self) -> WordingSection:
        if (self.file is None) == (self.use is None):
            raise ValueError("set exactly one of `file` (a .jsonl file) and `use` (a prompt generator)")
        if self.file is not None and self.options:
            raise ValueError("`options` require `use`; a file has no options")
        return self


class MonitorsSection(StrictModel):
    """Monitors for reward hacking: values that must not get worse while the target reward rises. Image statistics are
    always monitored; out-of-domain rewards are optional."""

    rewards: list[RewardBlock] = Field(
        default_factory=list,
        description="Out-of-domain rewards, computed at every evaluation and never trained on.",
    )
    wording: Annotated[WordingSection, ShortForm("file", "Path of a .jsonl file.")] | None = Field(
        default=None,
        description="Also score the held-out prompts in other words, with the same noise: `reworded.LABEL` is the "
        "score of the evaluated reward LABEL, `wording_gap.LABEL` its difference to the score in the prompts' own "
        "words, which falls if a model learns the wording.",
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
