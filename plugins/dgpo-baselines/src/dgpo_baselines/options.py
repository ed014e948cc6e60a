"""Options of the samplers and objectives. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dgpo_schemas.base import Float, Options

__all__ = ["AwmOptions", "FlowCpsOptions", "FlowGrpoOptions", "FlowSdeOptions", "NftOptions"]


class WindowOptions(Options):
    """Which steps are random; the others follow the flow, as `flow-euler` does."""

    random_from: Float = Field(
        default=1.0, ge=0, le=1, description="Largest sigma at which a random step may start (1 is noise)."
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
        description="Noise level a: the diffusion is a * sqrt(sigma / (1 - sigma)). Flow-GRPO's 0.7.",
    )


class FlowCpsOptions(WindowOptions):
    """Options of the sampler `flow-cps`."""

    eta: Float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Share of fresh noise: at the next sigma the noise is sin(eta * pi / 2) fresh and cos of it kept.",
    )


class FlowGrpoOptions(Options):
    """Options of the objective `flow-grpo`."""

    clip: Float = Field(
        default=1e-4,
        gt=0,
        lt=1,
        description="PPO's clip range of the ratio. Log-probabilities are means over the latent: ratios stay near 1.",
    )
    log_prob: Literal["gaussian", "distance"] = Field(
        default="gaussian",
        description="What a ratio compares: log-densities of the step, or -(x' - mean)^2 alone, as Flow-CPS's code "
        "does, which counts steps of little noise less.",
    )


class NftOptions(Options):
    """Options of the objective `diffusion-nft`."""

    beta: Float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="How far the implicit policies lie from the old one, in steps to the policy; guidance is 1 / beta.",
    )
    advantage_clip: Float = Field(
        default=5.0,
        gt=0,
        le=1e6,
        description="Advantage at which the optimality probability is 1 (and 0 at its negative): 5 in the code, 1 in "
        "the paper's equation.",
    )
    adaptive: bool = Field(
        default=True, description="Weigh each error by sigma over its mean magnitude, in place of the plain square."
    )


class AwmOptions(Options):
    """Options of the objective `awm`."""

    weighting: Literal["uniform", "sigma", "sigma-squared"] = Field(
        default="uniform", description="Weight w(sigma) of the matching error: 1, sigma, or its square."
    )
