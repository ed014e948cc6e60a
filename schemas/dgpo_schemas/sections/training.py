"""Sections about optimization: objective, moving averages, training timesteps, AdamW."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, Float, Int, StrictModel, UseBlock
from dgpo_schemas.sigma import SigmaExpression

__all__ = ["EmaFastSection", "EmaSection", "ObjectiveSection", "OptimizerSection", "ResetSection", "TimestepsSection"]


class EmaFastSection(StrictModel):
    """The model `ema_fast`, a fast EMA of the policy (the old policy of the papers).

    After each optimizer update: ema_fast <- d*ema_fast + (1-d)*policy, with d = min(max_decay, ramp*k) and k the number
    of updates before this one, so d = 0 at the first update (as in the authors' code). With `per: iteration` the same
    after the last update of an iteration, with k the number of updates before the iteration. Within an iteration the
    model then stays as it was when the iteration's samples were drawn: with `max_decay: 0` it is the policy of that
    time, and with `ema_rollouts_after: 0` it drew the samples, whatever the decay.
    """

    max_decay: Float = Field(default=0.3, ge=0, lt=1, description="Maximum decay.")
    ramp: Float = Field(default=0.001, ge=0, le=1, description="Increase of the decay per optimizer update.")
    per: Literal["update", "iteration"] = Field(
        default="update",
        description="When the EMA moves: after each optimizer update, or only after the last one of an iteration, so "
        "that all updates and passes of an iteration compare with the same old policy.",
    )


class EmaSection(StrictModel):
    """The model `ema`, a slow EMA of the policy, used for evaluation, images and export.

    When the number k of optimizer updates is every - 1, 2 * every - 1, ...: ema <- d*ema + (1-d)*policy, with
    d = min((1 + k) / (10 + k), decay) (as in the authors' code). Before its first update it equals the base model; the
    policy is then used in its place, with a message.
    """

    decay: Float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Maximum decay; after k optimizer updates the decay is min((1 + k) / (10 + k), decay).",
    )
    every: Int = Field(
        default=8,
        ge=1,
        le=10**9,
        description="Optimizer updates between two EMA updates; the first EMA update is one optimizer update earlier.",
    )
    repeats: Int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Number of times that each EMA update is applied, for an effective decay of decay^repeats. The "
        "authors' code applies it once per micro-batch of a GPU: 2 times for GenEval and OCR, 4 for PickScore.",
    )

    @property
    def first_move(self) -> int:
        """Number of optimizer updates after which the EMA is updated for the first time."""
        return max(self.every - 1, 1)


class ResetSection(StrictModel):
    """When a reference that is reset becomes the policy, between iterations (GARDO, arXiv 2512.24138, which counts
    `every` from the last reset; here a reset by `kl` does not shift the others)."""

    every: Int = Field(
        default=15, ge=1, le=10**9, description="Reset after iterations every, 2 * every, 3 * every and so on."
    )
    kl: Float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="Also reset after an iteration whose KL term, mean (v - v_reference)^2, is larger; null does not.",
    )


class ObjectiveSection(UseBlock):
    """The loss. The defaults are those of Direct Group Preference Optimization (arXiv 2510.08425)."""

    use: str = Field(default="dgpo", min_length=1, description="Name of the objective.")
    beta: Float = Field(
        default=100.0, gt=0, le=1e9, description="Scale of the group preference inside the sigmoid (beta of the paper)."
    )
    kl: Float = Field(
        default=1e-3,
        ge=0,
        le=1e6,
        description="Weight of the KL term, mean (v - v_base)^2; 0 disables the term.",
    )
    kl_cfg: Float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Classifier-free guidance scale (`guidance_scale` in diffusers) of the frozen base model, in the "
        "KL term and in the denoising error of a frozen reference.",
    )
    clip: Float | None = Field(
        default=1e-2,
        gt=0,
        lt=1,
        description="PPO-style clip range of the ratio exp(dsm_old - dsm), where dsm is the denoising error; null "
        "disables clipping.",
    )
    clip_kl: bool = Field(default=False, description="Also exclude clipped samples from the KL term.")
    reference: Literal["frozen", "ema_fast", "start", "reset"] = Field(
        default="frozen",
        description="Reference model of the group preference: the frozen base model, the fast EMA of the policy, "
        "`start`, the frozen weights that the run started from (`backbone.lora.init`, `run.init_from`), or `reset`, "
        "the policy of an earlier iteration. The KL term uses the base model, and with `start` or `reset` these "
        "weights too.",
    )
    reset: ResetSection = Field(
        default_factory=ResetSection,
        description="When the reference `reset` becomes the policy; before, it is the model that the run started from.",
    )
    ema_fast: EmaFastSection = Field(
        default_factory=EmaFastSection,
        description="Fast EMA of the policy, `ema_fast`: the old policy for clipping, rollouts and `reference`.",
    )
    ema: EmaSection = Field(
        default_factory=EmaSection,
        description="Slow EMA of the policy, `ema`: the model that is evaluated and exported by default.",
    )
    ema_rollouts_after: Int | None = Field(
        default=200,
        ge=0,
        le=10**12,
        description="Use the fast EMA for rollouts after more than this number of optimizer updates, and the policy "
        "before; null always uses the policy.",
    )


class TimestepsSection(UseBlock):
    """Timesteps at which the loss is evaluated."""

    use: str = Field(default="uniform", min_length=1, description="Name of the timestep policy.")
    count: Int = Field(default=4, ge=1, le=1000, description="Number of training timesteps per iteration.")
    t_min: SigmaExpression = Field(
        default="shift(0.3)",
        description="Smallest sigma: a number in [0, 1], or `shift(0.3)` to apply the time shift to 0.3.",
    )
    t_max: SigmaExpression | None = Field(
        default=None,
        description="Largest sigma, in the same format as t_min; default: the largest that the model supports, which "
        "is 1 for flow models.",
    )
    shared_noise: bool = Field(
        default=True,
        description="Use the same noise for all samples of a group; it is drawn anew for each timestep.",
    )


class OptimizerSection(StrictModel):
    """AdamW, its learning rate schedule, and the split of an iteration into optimizer updates."""

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
        description="Bits of AdamW's moments. 8-bit moments (bitsandbytes, block-wise) need a quarter of the memory, "
        "which matters for `train: full`; results differ from 32-bit.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        json_schema_extra=FROM_THERE_ON,
        description="Learning rate schedule after the warmup: constant, or decay to 0 at the end of the run.",
    )
    warmup: Int = Field(
        default=0,
        ge=0,
        le=10**9,
        json_schema_extra=FROM_THERE_ON,
        description="Number of optimizer updates of linear warmup.",
    )
    max_grad_norm: Float | None = Field(
        default=1.0,
        gt=0,
        json_schema_extra=FROM_THERE_ON,
        description="Maximum gradient norm for clipping; null disables clipping.",
    )
    updates: Int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Number of optimizer updates per pass over the groups of an iteration; must divide rollout.groups.",
    )
    passes: Int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Number of passes over the groups of an iteration. Each pass trains on all of them, in `updates` "
        "updates, at its own timesteps and noise. With more than one, consider `objective.ema_fast.per: iteration`.",
    )
    micro_batch: Annotated[Int, Field(ge=1, le=10**9)] | Literal["auto"] | None = Field(
        default=None,
        json_schema_extra=ANYTIME,
        description="Number of samples per forward pass; default: one group. Gradients are accumulated, so it does not "
        "affect the result. `auto`: on a GPU as many whole groups as fit, up to 32 samples, found by halving when "
        "memory runs out; elsewhere, and with `run.shard`, one group.",
    )
    max_skipped: Int = Field(
        default=10,
        ge=0,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Maximum number of consecutive updates skipped because of non-finite values; the next one stops "
        "the run.",
    )

    @property
    def updates_per_iteration(self) -> int:
        """Number of optimizer updates per iteration, of all passes."""
        return self.updates * self.passes
