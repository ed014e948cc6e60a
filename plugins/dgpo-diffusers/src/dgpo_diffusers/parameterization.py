"""What a network was trained to give, and the velocity that it means.

Flow models give it as it is. Variance-preserving (VP) models know x_vp = alpha * x0 + s * noise, alpha^2 + s^2 = 1, at
places t of a table of noise levels; in flow coordinates that is sigma = s / (alpha + s) and x = x_vp / (alpha + s), of
equal signal-to-noise ratio (`dgpo_core.flow.velocity`). A table ends short of sigma 0 and, unless it has a zero
terminal SNR, short of 1: outside there is no time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.flow.velocity import velocity_from_epsilon, velocity_from_vp_velocity
from dgpo_core.transfers import in_float64, to_device
from dgpo_core.types import Schedule
from dgpo_schemas.problems import is_number

__all__ = ["EpsilonPrediction", "FlowPrediction", "VPrediction"]

SMALLEST = 2.0**-24
"""alpha^2 that stands for 0 where its logarithm is taken, as in EulerDiscreteScheduler: S = s / alpha is then 4096."""
OTHER_GRIDS = ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
RHO = 7
"""By which Karras et al. space the ratios S."""
SNAP = 2e-3
"""A time so near to a whole one is that one. Samplers hand times over in float32, whose rounding, grown by 1 / (1 -
sigma), moves t by about 1e-4; networks read whole times better than that."""


class FlowPrediction:
    """v = noise - x0 at x_sigma itself."""

    sigma_range = (0.0, 1.0)

    def state(self, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """x_sigma [B, ...] at sigma [B] in the network's own coordinates."""
        return x_sigma

    def time(self, sigma: Tensor) -> Tensor:
        """sigma [B] as the network counts times: from 0 to 1 here, places in a table of noise levels elsewhere."""
        return sigma

    def velocity(self, output: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """The network's output, float32 [B, ...], to noise - x0."""
        return output

    def start(self, sigma: float) -> float:
        """See `Backbone.start`."""
        return 1.0

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """See `Backbone.loss_weight`."""
        return None


class EpsilonPrediction(FlowPrediction):
    """The noise of a VP model. config: of its diffusers scheduler, EulerDiscrete's, DDIM's or another's of its kind.

    The schedule is EulerDiscreteScheduler's for the config's `timestep_spacing`, or its `use_karras_sigmas` (Karras et
    al., arXiv 2206.00364, eq. 5), whose steps are Euler steps in flow time. Raises ValueError for a table of noise
    levels, or a spacing, that is not known.
    """

    known_at_one = False
    """Whether a prediction means a velocity at sigma = 1, of a table whose last state is all noise."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.spacing = str(config.get("timestep_spacing", "leading"))
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"timestep_spacing is leading, trailing or linspace, not {self.spacing!r}")
        self.offset = _whole(config, "steps_offset", 0)
        for name in OTHER_GRIDS:
            if config.get(name):
                raise ValueError(f"{name} is {config[name]!r}; allowed is false: its times are not known")
        self._karras = _ends(config) if config.get("use_karras_sigmas") else None
        table = _alphas_cumprod(config)
        self._zero_end = bool(table[-1] == 0)
        if self._zero_end:
            table[-1] = min(SMALLEST, table[-2] / 2)
        self._ratios = np.sqrt((1 - table) / table)  # S = s / alpha, ascending
        self._log_alphas = np.log(table)  # of alpha^2, descending
        self._known = torch.from_numpy(-self._log_alphas)  # ascending, as a search wants it
        low, high = (float(s / (1 + s)) for s in (self._ratios[0], self._ratios[-1]))
        self.sigma_range = (low, 1.0 if self._zero_end and self.known_at_one else high)

    def schedule(self, steps: int) -> Schedule:
        """The times of EulerDiscreteScheduler. Raises UserError for more steps than the table has places."""
        count = len(self._ratios)
        if not 1 <= steps <= count:
            raise UserError(f"rollout.steps: {steps} given, this model has {count} times; at most {count} are possible")
        places = np.arange(steps, dtype=np.float64)
        if self.spacing == "leading":
            t = (places * (count // steps))[::-1] + self.offset
        elif self.spacing == "trailing":
            t = np.round(count - places * (count / steps)) - 1
        else:
            t = np.linspace(0, count - 1, steps)[::-1]
        ratios = np.interp(t, np.arange(count), self._ratios)
        if self._karras is not None:
            high, low = (given or known for given, known in zip(self._karras, (ratios[0], ratios[-1]), strict=True))
            ends = high ** (1 / RHO), low ** (1 / RHO)
            ratios = np.linspace(*ends, steps) ** RHO
        grid = tuple(float(s / (1 + s)) for s in ratios)
        return Schedule(grid=grid, first=grid[0])

    def state(self, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """x_vp."""
        return x_sigma * _square(sigma).rsqrt().to(x_sigma.dtype).reshape(-1, *(1,) * (x_sigma.ndim - 1))

    def time(self, sigma: Tensor) -> Tensor:
        """The place t [B] in the table, in [0, places - 1], float32, not rounded: linear in log alpha^2 between whole
        places (within 7e-4 of held-out ones)."""
        exact = in_float64(sigma)
        ratio = exact / (1 - exact)
        wanted = -torch.log1p(ratio.square())
        known = self._known = to_device(self._known, exact.device)  # copied there once, not at every step
        after = torch.searchsorted(known, -wanted).clamp(1, len(known) - 1)
        low, high = known[after - 1], known[after]
        t = (after - 1 + ((-wanted - low) / (high - low))).clamp(0, len(known) - 1)
        whole = t.round()
        return torch.where((t - whole).abs() < SNAP, whole, t).float().to(sigma.device)

    def velocity(self, output: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """(epsilon - x) / (1 - sigma), in float32: near 1 it makes the rounding of epsilon larger."""
        return velocity_from_epsilon(x_sigma, output.to(x_sigma.dtype), sigma)

    def start(self, sigma: float) -> float:
        """EulerDiscreteScheduler's: noise of variance 1 in VP coordinates for the spacing `leading`, and the noise
        alone, without what is left of x0, for the others."""
        return math.sqrt((1 - sigma) ** 2 + sigma**2) if self.spacing == "leading" else sigma

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """(1 - sigma)^2: the squared error is then that of epsilon."""
        return (1 - sigma).square()


class VPrediction(EpsilonPrediction):
    """alpha * noise - s * x0 of a VP model, `v_prediction` in diffusers."""

    known_at_one = True

    def velocity(self, output: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
        """(alpha + s) * output + (s - alpha) * x_vp."""
        return velocity_from_vp_velocity(x_sigma, output.to(x_sigma.dtype), sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor | None:
        """(1 - sigma)^2 + sigma^2: the squared error is then the network's own."""
        return _square(sigma)


def _square(sigma: Tensor) -> Tensor:
    """1 / (alpha + s)^2."""
    return (1 - sigma).square() + sigma.square()


def _alphas_cumprod(config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """alpha^2 at each place of a scheduler's table, descending, float64."""
    count = _whole(config, "num_train_timesteps", 1000)
    first, last = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif kind == "linear":
        betas = np.linspace(first, last, count)
    elif kind == "scaled_linear":
        betas = np.linspace(math.sqrt(first), math.sqrt(last), count) ** 2
    elif kind == "squaredcos_cap_v2":
        level = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], 0.999)
    else:
        raise ValueError(f"beta_schedule is linear, scaled_linear or squaredcos_cap_v2, not {kind!r}")
    if betas.ndim != 1 or len(betas) < 2 or not bool(((betas >= 0) & (betas < 1)).all()) or not betas.any():
        raise ValueError("the betas are numbers from 0 to 1, two or more of them; these are not")
    table = np.cumprod(1 - betas)
    c = float(config.get("snr_shift_scale", 1.0))
    table = table / (c + (1 - c) * table)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(table)
        table = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    if not bool((np.diff(table) < 0).all()) or not bool((table[:-1] > 0).all()):
        raise ValueError("the noise of a table of betas grows from place to place, and this one's does not")
    return np.asarray(table, dtype=np.float64)


def _whole(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} is {value!r}; allowed is a whole number, 0 or more")
    return value


def _ends(config: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """sigma_max and sigma_min, ratios S, of Karras's times; None where the table's own are meant."""
    found = config.get("sigma_max"), config.get("sigma_min")
    for value in found:
        if value is not None and not (is_number(value) and value > 0):
            raise ValueError(f"sigma_min and sigma_max are numbers above 0, or null, not {value!r}")
    return found
