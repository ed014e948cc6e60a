"""Sections about the loss and its minimization: objective, moving averages, training times, AdamW."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, Float, Int, StrictModel, UseBlock
from dgpo_schemas.sigma import SigmaExpression

__all__ = ["EmaFastSection", "EmaSection", "ObjectiveSection", "OptimizerSection", "TimestepsSection"]


class EmaFastSection(StrictModel):
    """The model `ema_fast`, a fast EMA of the policy that the papers call the old policy: ema_fast <- d*ema_fast +
    (1-d)*policy after each update, d = min(max_decay, ramp*k), k the number of updates before that one: d = 0 at the
    first (the authors' code)."""

    max_decay: Float = Field(default=0.3, ge=0, lt=1, description="Largest decay.")
    ramp: Float = Field(default=0.001, ge=0, le=1, description="Growth of the decay an optimizer update.")


class EmaSection(StrictModel):
    """The model `ema`, a slow EMA of the policy, used for evaluation, images and export: ema <- d*ema + (1-d)*policy
    when the number k of updates done is every - 1, 2 * every - 1, ..., with d = min((1 + k) / (10 + k), decay) (the
    authors' code).

    Before its first move it has learned nothing: the policy is then taken in its place, and that is said.
    """

    decay: Float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Largest decay of a move; at the k-th update min((1 + k) / (10 + k), decay).",
    )
    every: Int = Field(
        default=8, ge=1, le=10**9, description="Optimizer updates between two moves; the first is one earlier."
    )
    repeats: Int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Times that a move is applied, with the same weights: decay^repeats in effect. The authors' loop "
        "applies it once a micro-batch of a card: 2 in their configurations of GenEval and OCR, 4 of PickScore.",
    )

    @property
    def first_move(self) -> int:
        """Optimizer updates after which the average moves for the first time."""
        return max(self.every - 1, 1)


class ObjectiveSection(UseBlock):
    """The loss. The defaults are the paper's Direct Group Preference Optimization."""

    use: str = Field(default="dgpo", min_length=1, description="Name of the objective.")
    beta: Float = Field(default=100.0, gt=0, le=1e9, description="Scale of the group preference in its sigmoid.")
    kl: Float = Field(default=1e-3, ge=0, le=1e6, description="Weight of mean (v - v_base)^2; 0 leaves the term out.")
    kl_cfg: Float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Guidance scale of the frozen base model: in the KL term, and in the dsm of a frozen reference.",
    )
    clip: Float | None = Field(
        default=1e-2, gt=0, lt=1, description="PPO-style clip range of exp(dsm_old - dsm); null leaves it out."
    )
    clip_kl: bool = Field(default=False, description="Let clipped members also drop out of the KL term.")
    reference: Literal["frozen", "ema_fast"] = Field(
        default="frozen",
        description="What the group preference is relative to: the frozen base model, or the fast EMA of the policy. "
        "The KL term compares with the base either way.",
    )
    ema_fast: EmaFastSection = Field(
        default_factory=EmaFastSection,
        description="Decay of `ema_fast`, the fast EMA of the policy: the old policy of clip, rollouts and reference.",
    )
    ema: EmaSection = Field(
        default_factory=EmaSection, description="Decay of `ema`, the slow EMA of the policy: evaluated and exported."
    )
    ema_rollouts_after: Int | None = Field(
        default=200,
        ge=0,
        le=10**12,
        description="Rollouts come from the fast EMA once more optimizer updates than these are done; null: never.",
    )


class TimestepsSection(UseBlock):
    """Which times the loss is taken at."""

    use: str = Field(default="uniform", min_length=1, description="Timestep policy.")
    count: Int = Field(default=4, ge=1, le=1000, description="Training timesteps an iteration.")
    t_min: SigmaExpression = Field(
        default="shift(0.3)", description="Smallest sigma: a number in [0, 1], or `shift(0.3)` for a shifted time."
    )
    t_max: SigmaExpression | None = Field(
        default=None,
        description="Largest sigma, written like t_min; by default the largest that the model knows, which is 1 for "
        "flow models.",
    )
    shared_noise: bool = Field(
        default=True, description="All members of a group share their noise at each timestep (fresh per timestep)."
    )


class OptimizerSection(StrictModel):
    """AdamW and how an iteration's groups become updates."""

    learning_rate: Float = Field(
        default=3e-4, gt=0, le=1000, json_schema_extra=FROM_THERE_ON, description="Peak learning rate."
    )
    betas: Annotated[list[Annotated[Float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.999], description="AdamW betas."
    )
    epsilon: Float = Field(default=1e-8, gt=0, le=1, description="AdamW epsilon.")
    weight_decay: Float = Field(
        default=1e-4, ge=0, le=1000, json_schema_extra=FROM_THERE_ON, description="AdamW weight decay."
    )
    bits: Literal[8, 32] = Field(
        default=32,
        description="Bits of AdamW's moments; 8 takes a quarter of their memory (bitsandbytes, block-wise), which "
        "matters when all weights are trained, and is not the same arithmetic.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        json_schema_extra=FROM_THERE_ON,
        description="Learning rate after the warm-up: constant, or falling to 0.",
    )
    warmup: Int = Field(
        default=0, ge=0, le=10**9, json_schema_extra=FROM_THERE_ON, description="Updates of linear warm-up."
    )
    max_grad_norm: Float | None = Field(
        default=1.0, gt=0, json_schema_extra=FROM_THERE_ON, description="Gradient-norm clip; null: none."
    )
    updates: Int = Field(
        default=1, ge=1, le=100_000, description="Optimizer updates an iteration: its groups are split evenly."
    )
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Samples a forward pass; by default one group. Any size gives the same gradient.",
    )
    max_skipped: Int = Field(
        default=10,
        ge=0,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Updates in a row that may be skipped for non-finite values before the run stops.",
    )
