"""Options of the samplers and objectives (does not import torch)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Options

__all__ = [
    "AwmOptions",
    "CrdOptions",
    "ElboPgOptions",
    "FlowCpsOptions",
    "FlowGrpoOptions",
    "FlowSdeOptions",
    "NftOptions",
    "RegularizedDgpoOptions",
]


class WindowOptions(Options):
    """Range of sigma with random steps; the other steps are Euler steps of the flow, as in `flow-euler`."""

    random_from: Float = Field(
        default=1.0, ge=0, le=1, description="Largest sigma at which a random step may start (1 is pure noise)."
    )
    random_to: Float = Field(default=0.0, ge=0, le=1, description="Smallest sigma at which a random step may start.")

    @model_validator(mode="after")
    def _not_empty(self) -> WindowOptions:
        if self.random_to > self.random_from:
            raise ValueError(
                f"no step is random: `random_to` {self.random_to:g} is above `random_from` {self.random_from:g}; "
                "sigma falls from 1 (noise) to 0"
            )
        return self


class FlowSdeOptions(WindowOptions):
    """Options of the sampler `flow-sde`."""

    noise: Float = Field(
        default=0.7,
        gt=0,
        le=100,
        description="Noise level a of the diffusion coefficient a * sqrt(sigma / (1 - sigma)); 0.7 in Flow-GRPO.",
    )


class FlowCpsOptions(WindowOptions):
    """Options of the sampler `flow-cps`."""

    eta: Float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Amount of fresh noise: sin(eta * pi / 2) of the noise is new, cos(eta * pi / 2) is kept.",
    )


class FlowGrpoOptions(Options):
    """Options of the objective `flow-grpo`."""

    clip: Float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="Clip range of PPO's ratio. Log-probabilities are means over the latent: ratios stay near 1.",
    )
    log_prob: Literal["gaussian", "distance"] = Field(
        default="gaussian",
        description="Log-probability in the ratio: the log-density of the step, or only -(x' - mean)^2 as in the code "
        "of Flow-CPS, which gives less weight to steps with little noise.",
    )
    ratio_norm: bool = Field(
        default=False,
        description="GRPO-Guard: center the log-ratio and multiply it by the std of the step, divide the loss by |dt|. "
        "Its clip is 2e-6 to 4e-6. Keeps the means of the steps, as much memory as the states of the path.",
    )
    step_weight: Literal["uniform", "noise"] = Field(
        default="uniform",
        description="Weight of each step's loss: 1, or as in TempFlow-GRPO the std of the step over the mean std of "
        "the random steps.",
    )

    @model_validator(mode="after")
    def _one_scale_of_the_steps(self) -> FlowGrpoOptions:
        if self.ratio_norm and self.log_prob == "distance":
            raise ValueError(
                "`ratio_norm` multiplies the log-density by the std of the step, and `log_prob: distance` leaves the "
                "std out already; use `log_prob: gaussian` with it"
            )
        if self.ratio_norm and self.step_weight != "uniform":
            raise ValueError(
                "`ratio_norm` and `step_weight: noise` both change how much each step weighs, ratio_norm by 1 / |dt|; "
                "use one of the two"
            )
        return self


class NftOptions(Options):
    """Options of the objective `diffusion-nft`."""

    beta: Float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="Distance of the implicit policies from the old policy, in multiples of the distance of the "
        "policy; guidance is 1 / beta.",
    )
    advantage_clip: Float = Field(
        default=5.0,
        gt=0,
        le=1e6,
        description="Advantage at which the optimality probability is 1 (0 at its negative): 5 in the authors' code, 1 "
        "in the paper's equation.",
    )
    adaptive: bool = Field(default=True, description="Weight each squared error by sigma over its mean magnitude.")


class AwmOptions(Options):
    """Options of the objective `awm`."""

    weighting: Literal["uniform", "sigma", "sigma-squared"] = Field(
        default="uniform", description="Weight w(sigma) of the matching error: 1, sigma, or its square."
    )


class CrdOptions(Options):
    """Options of the objective `crd`."""

    beta: Float = Field(
        default=1.0,
        gt=0,
        le=1e9,
        description="Scale of the implicit reward: rewards that span 1 are fitted when dsm_old - dsm spans 1 / beta.",
    )
    advantage_clip: Float = Field(
        default=5.0, gt=0, le=1e6, description="Advantage at which the reward is 1 (0 at its negative)."
    )
    adaptive: bool = Field(default=True, description="Divide each denoising error by its mean magnitude.")
    kl_floor: Float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the KL weight for a member of reward 0, rising to 1 at reward 1; null weights all alike.",
    )


class ElboPgOptions(Options):
    """Options of the objective `elbo-pg`."""

    form: Literal["epg", "pepg", "par"] = Field(
        default="pepg",
        description="Policy gradient, the same regularized towards the old policy, or that as a regression with the "
        "same gradient.",
    )
    scale: Float = Field(
        default=0.1, gt=0, le=1e6, description="Factor of the advantages; 0.1 in the paper, with advantages.std: none."
    )
    adaptive: bool = Field(
        default=True,
        description="Denoising errors of x0, each divided by its mean magnitude; else those of velocities.",
    )
    ratio: bool = Field(default=True, description="Weight by the ratio exp(dsm_old - dsm) to the old policy.")


class RegularizedDgpoOptions(Options):
    """Options of the objective `regularized-dgpo`."""

    trust_region: Float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Largest mean (v - v_old)^2 at which a sample is pushed further from the old policy; replaces the "
        "clip. null disables it.",
    )
    kl_from: Float = Field(
        default=0.0, ge=0, le=1, description="Smallest sigma of the KL term (1 is pure noise); 0 applies it everywhere."
    )
    kl_uncertain: Float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of an iteration's samples that have a KL term: those that the reward ranks highest "
        "above the ranks of the rewards of weight 0. null gives it to all.",
    )
    adaptive: bool = Field(
        default=False,
        description="Denoising errors of x0, each divided by its mean magnitude; else those of velocities.",
    )
