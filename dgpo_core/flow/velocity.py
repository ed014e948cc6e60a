"""Flow-matching mathematics: paths, velocities, guidance, and how noise-prediction models fit in.

sigma is flow-matching time in [0, 1]: 1 is noise, 0 is data; x_sigma = (1 - sigma) * x0 + sigma * noise (Lipman et
al., arXiv 2210.02747, with time reversed; Liu et al., arXiv 2209.03003). A sigma of B samples is [B] (or 0-d, one
for all) and broadcasts over their other dimensions. Results keep the dtype of the state, whatever sigma's is.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, overload

import torch
from torch import Tensor

from dgpo_core.types import Conditioning

__all__ = [
    "Guided",
    "denoised",
    "flow_from_vp",
    "gaussian_log_prob",
    "guided_velocity",
    "interpolate",
    "shift_sigma",
    "unshift_sigma",
    "velocity_from_epsilon",
    "velocity_from_vp_velocity",
    "velocity_from_x0",
    "velocity_target",
    "vp_from_flow",
]

FloatOrTensor = TypeVar("FloatOrTensor", float, Tensor)


class Guided(Protocol):
    """What guidance needs of a backbone (`contracts.Backbone`)."""

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Velocity [B, ...]."""

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Both velocities as one."""


def shift_sigma(sigma: FloatOrTensor, shift: float) -> FloatOrTensor:
    """k*sigma / (1 + (k-1)*sigma): moves time to high noise for shift k > 1 (SD3, arXiv 2403.03206, eq. 23).

    sigma in [0, 1], of any shape; shift > 0. The ends 0 and 1 stay where they are.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma: FloatOrTensor, shift: float) -> FloatOrTensor:
    """The time that `shift_sigma` maps to sigma: the shift by 1 / k."""
    return sigma / (shift - (shift - 1) * sigma)


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) * x0 + sigma * noise; x0 and noise [B, ...], sigma [B] or 0-d."""
    sigma = _broadcast(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """v = d x_sigma / d sigma = noise - x0, the same at every sigma."""
    return noise - x0


def denoised(x_sigma: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """The estimate of x0 that a velocity implies: x_sigma - sigma * v. sigma [B], 0-d, or a number."""
    return x_sigma - _broadcast(sigma, x_sigma) * velocity


def guided_velocity(
    backbone: Guided,
    x_sigma: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning | None,
    guidance: float,
) -> Tensor:
    """The backbone's `guide` of its two velocities, both halves in one batch.

    x_sigma [B, ...]; sigma [B] or 0-d; conditioning B rows; unconditional B rows, or one row for all. At guidance 1
    it is one plain call, exactly the conditional velocity, and `unconditional` may be None. Returns [B, ...].
    Raises ValueError where guidance needs an unconditional and there is none, or its rows do not fit.
    """
    batch = len(x_sigma)
    sigma = sigma.expand(batch)
    if guidance == 1:
        return backbone.velocity(x_sigma, sigma, conditioning)
    if unconditional is None:
        raise ValueError(f"guidance {guidance:g} needs unconditional conditioning; only guidance 1 goes without")
    if len(unconditional) == 1:
        unconditional = unconditional.expand(batch)
    if not len(unconditional) == len(conditioning) == batch:
        raise ValueError(
            f"{batch} samples with {len(conditioning)} rows of conditioning and {len(unconditional)} unconditional "
            f"rows: give {batch} rows of each (or a single unconditional one)"
        )
    both = Conditioning.cat([unconditional, conditioning])
    v_u, v_c = backbone.velocity(torch.cat([x_sigma, x_sigma]), torch.cat([sigma, sigma]), both).chunk(2)
    return backbone.guide(v_c, v_u, guidance, x_sigma=x_sigma, sigma=sigma)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log-density of x under N(mean, std^2), mean over all but the batch dimension: [B, ...] -> [B]; std > 0.

    The mean, not the sum, so that its scale does not grow with the resolution (Flow-GRPO's code).
    """
    square = (x - mean).square().flatten(1).mean(1)
    return -square / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)


# Variance-preserving (VP) models, x_vp = alpha * x0 + sigma_vp * noise with alpha^2 + sigma_vp^2 = 1: at equal
# signal-to-noise ratio x_vp is x_sigma rescaled, so one network serves both parameterizations. A noise-prediction
# backbone's `velocity` is: vp_from_flow(sigma) -> its own time and input scale -> epsilon -> velocity_from_epsilon.


def vp_from_flow(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flow time to (alpha, sigma_vp, scale) of equal signal-to-noise ratio, with x_vp = scale * x_sigma.

    With n = sqrt((1-sigma)^2 + sigma^2): alpha = (1-sigma)/n, sigma_vp = sigma/n, scale = 1/n in [1, sqrt(2)].
    """
    scale = torch.rsqrt((1 - sigma).square() + sigma.square())
    return (1 - sigma) * scale, sigma * scale, scale


def flow_from_vp(alpha: Tensor, sigma_vp: Tensor) -> Tensor:
    """Flow time of equal signal-to-noise ratio: sigma = sigma_vp / (alpha + sigma_vp). Inverse of `vp_from_flow`."""
    return sigma_vp / (alpha + sigma_vp)


def velocity_from_epsilon(x_sigma: Tensor, epsilon: Tensor, sigma: Tensor) -> Tensor:
    """v = (epsilon - x_sigma) / (1 - sigma) of a noise prediction; sigma [B] or 0-d, below 1.

    At sigma = 1 the state holds nothing of x0 and v is undefined: the noise schedule of such a model ends short of 1,
    which it says (`Backbone.sigma_range`), and its samples start there (`Backbone.start`). To clamp sigma in here is no
    substitute: samples that start at 1 keep noise that no later step takes away. (1 - sigma)^2 times a squared error of
    v is the one of epsilon, exactly; epsilon should be float32, for near 1 its rounding grows by 1 / (1 - sigma).
    """
    return (epsilon - x_sigma) / (1 - _broadcast(sigma, x_sigma))


def velocity_from_vp_velocity(x_sigma: Tensor, vp_velocity: Tensor, sigma: Tensor) -> Tensor:
    """v of a network that predicts alpha * noise - sigma_vp * x0, the `v_prediction` of VP models; sigma [B] or 0-d.

    v = (alpha + sigma_vp) * vp_velocity + (sigma_vp - alpha) * x_vp, defined up to sigma = 1. With n^2 = (1 - sigma)^2
    + sigma^2 that is vp_velocity / n + (2 sigma - 1) / n^2 * x_sigma; n^2 times a squared error of v is the network's.
    """
    time = _broadcast(sigma, x_sigma)
    square = (1 - time) ** 2 + time**2
    return vp_velocity / square**0.5 + (2 * time - 1) / square * x_sigma


def velocity_from_x0(x_sigma: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """v = (x_sigma - x0) / sigma of a data prediction; sigma [B] or 0-d, above 0. Inverse of `denoised`."""
    return (x_sigma - x0) / _broadcast(sigma, x_sigma)


@overload
def _broadcast(sigma: Tensor, like: Tensor) -> Tensor: ...
@overload
def _broadcast(sigma: Tensor | float, like: Tensor) -> Tensor | float: ...
def _broadcast(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """sigma [B] as [B, 1, ...] in the dtype of `like` (a float64 sigma must not turn float32 latents into float64)."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma  # numbers and 0-d tensors broadcast, and leave the dtype alone, on their own
    return sigma.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
