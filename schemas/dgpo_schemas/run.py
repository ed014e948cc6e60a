"""`RunConfig`: the schema of a run file (`run.yaml`).

Each section is one class in `sections`; rules that involve several sections are in `rules`. Plugins receive instances
of these classes. Times are flow-matching times sigma in [0, 1]: 1 is pure noise, 0 is data.
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

    run: RunSection = Field(description="Name, output directory, seed, length and device of the run.")
    backbone: BackboneSection = Field(description="The model to train.")
    prompts: PromptsSection = Field(description="Training and held-out prompts.")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How groups of samples are generated.")
    rewards: list[RewardBlock] = Field(min_length=1, description="Rewards to train on.")
    scoring: ScoringSection = Field(default_factory=ScoringSection, description="How rewards are combined.")
    weighting: Use = Field(
        default=UseBlock(use="abs-advantage"),
        description="Sample weights from advantages: a name, or `use` with `options`.",
    )
    advantages: AdvantagesSection = Field(
        default_factory=AdvantagesSection, description="How advantages are computed from rewards."
    )
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection, description="The loss.")
    timesteps: TimestepsSection = Field(default_factory=TimestepsSection, description="Training timesteps.")
    optimizer: OptimizerSection = Field(default_factory=OptimizerSection, description="AdamW optimizer.")
    evaluation: EvaluationSection = Field(
        default_factory=EvaluationSection,
        json_schema_extra=FROM_THERE_ON,
        description="Evaluation on the held-out prompts.",
    )
    stop: StopSection = Field(
        default_factory=StopSection, json_schema_extra=ANYTIME, description="Early stopping, before run.iterations."
    )
    checkpoints: CheckpointsSection = Field(
        default_factory=CheckpointsSection, json_schema_extra=ANYTIME, description="When to save, and what to keep."
    )
    logging: LoggingSection = Field(
        default_factory=LoggingSection, json_schema_extra=ANYTIME, description="Console output and trackers."
    )
    precision: PrecisionSection = Field(
        default_factory=PrecisionSection, json_schema_extra=FROM_THERE_ON, description="Precision and kernels."
    )

    @model_validator(mode="after")
    def _cross_field_rules(self) -> RunConfig:
        rules.raise_all(violations(self))
        return self

    @property
    def starts_elsewhere(self) -> bool:
        """Whether the trained weights start from an adapter or from another run, not from the base model."""
        adapter = self.backbone.train == "lora" and self.backbone.lora.init is not None
        return adapter or self.run.init_from is not None

    def training_range(self, shift: float, highest: float = 1.0) -> tuple[float, float]:
        """Resolve (t_min, t_max) to sigmas in [0, 1].

        Args:
            shift: Time shift of the rollouts' noise schedule, used to resolve `shift(...)`.
            highest: Largest time that the model supports, the default of t_max.
        """
        section = self.timesteps
        return (
            resolve_sigma(section.t_min, shift),
            highest if section.t_max is None else resolve_sigma(section.t_max, shift),
        )


def on_mps(config: RunConfig) -> list[tuple[str, str]]:
    """Return (key, message) of every setting that is not possible on MPS."""
    return list(rules.on_mps(config.run, config.backbone, config.precision, config.optimizer))


def violations(config: RunConfig) -> list[tuple[str, str]]:
    """Return (key, message) of every broken rule that involves several sections."""
    rollout, rewards, prompts, evaluation = config.rollout, config.rewards, config.prompts, config.evaluation
    return [
        *rules.geometry(rollout, config.optimizer),
        *rules.explore(rollout),
        *rules.times(rollout.shift, config.timesteps),
        *rules.guidance(rollout.guidance, config.objective),
        *rules.guidance_interval(rollout, evaluation),
        *rules.rewards(rewards, evaluation, prompts),
        *rules.sources(prompts, rewards, evaluation),
        *rules.stop(config.stop, prompts, rewards, evaluation),
        *rules.without_effect(config.objective, config.backbone, rollout),
        *rules.precision(config.precision, config.backbone),
        *(on_mps(config) if config.run.device == "mps" else ()),
        *rules.start(config.run, config.backbone, config.objective, starts_elsewhere=config.starts_elsewhere),
    ]
