"""Flow-matching mathematics: interpolation, velocities, guidance, conversion of noise-prediction models.

sigma is flow-matching time in [0, 1]: 1 is noise, 0 is data; x_sigma = (1 - sigma) * x0 + sigma * noise (Lipman et
al., arXiv 2210.02747, with time reversed; Liu et al., arXiv 2209.03003). For B samples, sigma is [B], or 0-d if shared,
and broadcasts over the other dimensions. Results have the dtype of the state, regardless of the dtype of sigma.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar, overload

import torch
from torch import Tensor

from dgpo_core.types import Conditioning

__all__ = [
    "Guided",
    "denoised",
    "flow_from_vp",
    "gaussian_log_prob",
    "guidance_at",
    "guided_velocity",
    "interpolate",
    "same_times",
    "shift_sigma",
    "unshift_sigma",
    "velocity_from_epsilon",
    "velocity_from_vp_velocity",
    "velocity_from_x0",
    "velocity_target",
    "vp_from_flow",
]

FloatOrTensor = TypeVar("FloatOrTensor", float, Tensor)
ROUNDING = 2.0**-20
"""Times that differ by at most this are the same: eight float32 roundings near 1, as of another device or order."""


class Guided(Protocol):
    """The part of `contracts.Backbone` that guidance uses."""

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity [B, ...]."""

    def guide(
        self, conditional: Tensor, unconditional: Tensor, guidance: float, *, x_sigma: Tensor, sigma: Tensor
    ) -> Tensor:
        """Combine the conditional and the unconditional velocity."""


def shift_sigma(sigma: FloatOrTensor, shift: float) -> FloatOrTensor:
    """Shift times: k * sigma / (1 + (k - 1) * sigma) (SD3, arXiv 2403.03206, eq. 23).

    A shift k > 1 moves times towards noise. sigma in [0, 1], any shape; shift > 0. 0 and 1 are fixed points.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma: FloatOrTensor, shift: float) -> FloatOrTensor:
    """Invert `shift_sigma`; equal to a shift by 1 / k."""
    return sigma / (shift - (shift - 1) * sigma)


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Return x_sigma = (1 - sigma) * x0 + sigma * noise; x0 and noise [B, ...], sigma [B] or 0-d."""
    sigma = _broadcast(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """Return the velocity dx_sigma/dsigma = noise - x0, which does not depend on sigma."""
    return noise - x0


def denoised(x_sigma: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Return the estimate of x0 implied by a velocity: x_sigma - sigma * v. sigma [B], 0-d, or a number."""
    return x_sigma - _broadcast(sigma, x_sigma) * velocity


def guidance_at(sigma: float, guidance: float, interval: Sequence[float] | None) -> float:
    """Return the guidance scale at sigma: `guidance` within the interval [low, high], ends included, otherwise 1.

    None guides everywhere (Kynkäänniemi et al., arXiv 2404.07724). The ends are compared up to `ROUNDING`: a time is
    decided alike in float64, in float32, and as another device computes it.
    """
    if interval is None:
        return guidance
    low, high = interval
    return guidance if low - ROUNDING <= sigma <= high + ROUNDING else 1.0


def same_times(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two lists of times are equal up to `ROUNDING`, and equally long."""
    return len(first) == len(second) and all(abs(a - b) <= ROUNDING for a, b in zip(first, second, strict=True))


def guided_velocity(
    backbone: Guided,
    x_sigma: Tensor,
    sigma: Tensor,
    conditioning: Conditioning,
    unconditional: Conditioning | None,
    guidance: float,
) -> Tensor:
    """Return the backbone's guided velocity [B, ...], with both branches evaluated in one batch of 2B.

    x_sigma [B, ...]; sigma [B] or 0-d; conditioning B rows; unconditional B rows, or a single row for all samples. At
    guidance scale 1, returns the conditional velocity without the second branch; `unconditional` can then be None.
    Raises ValueError if `unconditional` is missing at another scale, or the numbers of rows do not match.
    """
    batch = len(x_sigma)
    sigma = sigma.expand(batch)
    if guidance == 1:
        return backbone.velocity(x_sigma, sigma, conditioning)
    if unconditional is None:
        raise ValueError(f"guidance {guidance:g} requires unconditional conditioning; only guidance 1 does not")
    if len(unconditional) == 1:
        unconditional = unconditional.expand(batch)
    if not len(unconditional) == len(conditioning) == batch:
        raise ValueError(
            f"expected {batch} rows of conditioning and {batch} (or 1) unconditional rows, one per sample; got "
            f"{len(conditioning)} and {len(unconditional)}"
        )
    both = Conditioning.cat([unconditional, conditioning])
    v_u, v_c = backbone.velocity(torch.cat([x_sigma, x_sigma]), torch.cat([sigma, sigma]), both).chunk(2)
    return backbone.guide(v_c, v_u, guidance, x_sigma=x_sigma, sigma=sigma)


def gaussian_log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """Return the log-density of x under N(mean, std^2), [B, ...] -> [B]; std > 0.

    Averages over all dimensions except the batch, as Flow-GRPO's code does, so that the scale does not depend on the
    resolution.
    """
    square = (x - mean).square().flatten(1).mean(1)
    return -square / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)


# Variance-preserving (VP) models use x_vp = alpha * x0 + sigma_vp * noise with alpha^2 + sigma_vp^2 = 1. At equal
# signal-to-noise ratio x_vp is x_sigma rescaled, so the same network serves both parameterizations. The `velocity` of a
# noise-prediction backbone is: vp_from_flow(sigma) -> its time and input scale -> epsilon -> velocity_from_epsilon.


def vp_from_flow(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Convert flow time to (alpha, sigma_vp, scale) at equal signal-to-noise ratio, with x_vp = scale * x_sigma.

    With n = sqrt((1-sigma)^2 + sigma^2): alpha = (1-sigma)/n, sigma_vp = sigma/n, scale = 1/n in [1, sqrt(2)].
    """
    scale = torch.rsqrt((1 - sigma).square() + sigma.square())
    return (1 - sigma) * scale, sigma * scale, scale


def flow_from_vp(alpha: Tensor, sigma_vp: Tensor) -> Tensor:
    """Return the flow time sigma_vp / (alpha + sigma_vp) at equal signal-to-noise ratio. Inverts `vp_from_flow`."""
    return sigma_vp / (alpha + sigma_vp)


def velocity_from_epsilon(x_sigma: Tensor, epsilon: Tensor, sigma: Tensor) -> Tensor:
    """Convert a noise prediction to the velocity (epsilon - x_sigma) / (1 - sigma); sigma [B] or 0-d, below 1.

    At sigma = 1 the state does not depend on x0 and v is undefined. The noise schedule of such a model ends below 1, as
    declared by `Backbone.sigma_range`, and sampling starts there (`Backbone.start`). Clamping sigma here instead would
    not work: samples that start at 1 keep noise that later steps do not remove. (1 - sigma)^2 times the squared error
    of v is exactly that of epsilon. epsilon should be float32, because rounding errors grow by 1 / (1 - sigma).
    """
    return (epsilon - x_sigma) / (1 - _broadcast(sigma, x_sigma))


def velocity_from_vp_velocity(x_sigma: Tensor, vp_velocity: Tensor, sigma: Tensor) -> Tensor:
    """Convert `v_prediction` of a VP model, alpha * noise - sigma_vp * x0, to the velocity; sigma [B] or 0-d.

    v = (alpha + sigma_vp) * vp_velocity + (sigma_vp - alpha) * x_vp, defined up to sigma = 1. With n^2 = (1 - sigma)^2
    + sigma^2 it equals vp_velocity / n + (2 sigma - 1) / n^2 * x_sigma; n^2 times the squared error of v is that of
    vp_velocity.
    """
    time = _broadcast(sigma, x_sigma)
    square = (1 - time) ** 2 + time**2
    return vp_velocity / square**0.5 + (2 * time - 1) / square * x_sigma


def velocity_from_x0(x_sigma: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
    """Convert a data prediction to the velocity (x_sigma - x0) / sigma; sigma [B] or 0-d, > 0. Inverts `denoised`."""
    return (x_sigma - x0) / _broadcast(sigma, x_sigma)


@overload
def _broadcast(sigma: Tensor, like: Tensor) -> Tensor: ...
@overload
def _broadcast(sigma: Tensor | float, like: Tensor) -> Tensor | float: ...
def _broadcast(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """Reshape sigma [B] to [B, 1, ...] in the dtype of `like`, so that a float64 sigma does not promote the latents."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma  # numbers and 0-d tensors broadcast without promoting the dtype
    return sigma.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
