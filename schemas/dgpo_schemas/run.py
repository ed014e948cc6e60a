"""`RunConfig`: everything a `run.yaml` may say.

One class per section, in `sections`; rules between them stand in `rules`. Plugins take from here what they are given.
Times are flow-matching times sigma in [0, 1]: 1 is pure noise, 0 is data.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from dgpo_schemas import rules
from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, StrictModel, Use, UseBlock
from dgpo_schemas.sections.backbone import BackboneSection, PrecisionSection
from dgpo_schemas.sections.evaluation import EvaluationSection
from dgpo_schemas.sections.prompts import PromptsSection
from dgpo_schemas.sections.rewards import AdvantagesSection, RewardBlock, ScoringSection
from dgpo_schemas.sections.rollout import RolloutSection
from dgpo_schemas.sections.training import ObjectiveSection, OptimizerSection, TimestepsSection
from dgpo_schemas.sections.whole import CheckpointsSection, LoggingSection, RunSection, StopSection
from dgpo_schemas.sigma import resolve_sigma

__all__ = ["BackboneSection", "ObjectiveSection", "RunConfig", "violations"]


class RunConfig(StrictModel):
    """A run file."""

    run: RunSection = Field(description="Name, directory, seed, length.")
    backbone: BackboneSection = Field(description="The model.")
    prompts: PromptsSection = Field(description="What to draw.")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How groups are drawn.")
    rewards: list[RewardBlock] = Field(min_length=1, description="What is rewarded.")
    scoring: ScoringSection = Field(default_factory=ScoringSection, description="Several rewards to one.")
    weighting: Use = Field(
        default=UseBlock(use="abs-advantage"), description="Advantages to weights: a name, or `use` with `options`."
    )
    advantages: AdvantagesSection = Field(default_factory=AdvantagesSection, description="Rewards to advantages.")
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection, description="The loss.")
    timesteps: TimestepsSection = Field(default_factory=TimestepsSection, description="Training times.")
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection, description="AdamW.")
    evaluation: EvaluationSection = Field(
        default_factory=EvaluationSection, json_schema_extra=FROM_THERE_ON, description="Held-out evaluation."
    )
    stop: StopSection = Field(
        default_factory=StopSection, json_schema_extra=ANYTIME, description="Ends before run.iterations."
    )
    checkpoints: CheckpointsSection = Field(
        default_factory=CheckpointsSection, json_schema_extra=ANYTIME, description="Saving."
    )
    logging: LoggingSection = Field(default_factory=LoggingSection, json_schema_extra=ANYTIME, description="Trackers.")
    precision: PrecisionSection = Field(
        default_factory=PrecisionSection, json_schema_extra=FROM_THERE_ON, description="Arithmetic."
    )

    @model_validator(mode="after")
    def _cross_field_rules(self) -> RunConfig:
        rules.raise_all(violations(self))
        return self

    def training_range(self, shift: float, highest: float = 1.0) -> tuple[float, float]:
        """(t_min, t_max) as sigmas in [0, 1], `shift(...)` resolved with this shift, which is that of the rollouts'
        schedule; highest: the largest time that the model knows."""
        section = self.timesteps
        return (
            resolve_sigma(section.t_min, shift),
            highest if section.t_max is None else resolve_sigma(section.t_max, shift),
        )


def violations(config: RunConfig) -> list[tuple[str, str]]:
    """(key, message) of every rule between sections that is broken."""
    rollout, rewards, prompts, evaluation = config.rollout, config.rewards, config.prompts, config.evaluation
    return [
        *rules.geometry(rollout, config.optimizer),
        *rules.times(rollout.shift, config.timesteps),
        *rules.guidance(rollout.guidance, config.objective),
        *rules.rewards(rewards, evaluation, prompts),
        *rules.sources(prompts, rewards, evaluation),
        *rules.stop(config.stop, prompts, rewards, evaluation),
        *rules.settings_in_vain(config.objective, config.backbone, rollout),
    ]
