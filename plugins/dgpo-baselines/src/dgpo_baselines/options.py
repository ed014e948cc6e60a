"""Options of the samplers and objectives (does not import torch)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Options

__all__ = ["AwmOptions", "FlowCpsOptions", "FlowGrpoOptions", "FlowSdeOptions", "NftOptions"]


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
