"""DGPO as its authors' code computes it, written anew from the formulas, in float64 and without the engine.

Sources: arXiv 2510.08425 and the code that its authors released (github.com/Luo-Yihong/DGPO): the loop of
scripts/train_sd3_dgpo.py, flow_grpo/stat_tracking.py and flow_grpo/ema.py. Sums are loops over samples, as one would
write them down; nothing is shared with `dgpo_core`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

__all__ = ["AdamW", "Averages", "Model", "Settings", "advantages", "loss"]

Model = Callable[[Literal["policy", "ema_fast", "base"], Tensor, float, str, float], Tensor]
"""(weights, x_sigma [...], sigma, prompt, guidance scale) to velocity [...]."""


@dataclass(frozen=True)
class Settings:
    """`beta_dpo`, `train.beta`, `kl_cfg`, `clip_range` (None: no clip), `clip_kl`, `use_ema_ref`, `adv_clip_max`."""

    beta: float
    kl: float = 0.0
    kl_cfg: float = 1.0
    clip: float | None = None
    clip_kl: bool = False
    dynamic: bool = False
    largest: float = 5.0


def advantages(prompts: Sequence[Hashable], rewards: Sequence[float], *, global_std: bool) -> np.ndarray:
    """(r - mean) / (std + 1e-4): mean over the samples of the same prompt in the iteration; population std of the same
    samples or of all."""
    found = np.empty(len(rewards))
    for i, prompt in enumerate(prompts):
        same = [r for p, r in zip(prompts, rewards, strict=True) if p == prompt]
        sharded = list(rewards) if global_std else same
        center = math.fsum(sharded) / len(sharded)
        std = math.sqrt(math.fsum((r - center) ** 2 for r in sharded) / len(sharded))
        found[i] = (rewards[i] - math.fsum(same) / len(same)) / (std + 1e-4)
    return found


def loss(
    model: Model,
    settings: Settings,
    groups: Sequence[Hashable],
    texts: Sequence[str],
    x0: Tensor,
    noise: Tensor,
    sigma: float,
    advantage: Sequence[float],
    group_size: int,
) -> Tensor:
    """The loss [] of a global batch of B samples at one time: `groups` [B] says whose statistics are added up.

    x0, noise [B, ...]. stopgrad(sigmoid(S_g)) * A_i * dsm_i and kl * |v - v_base|^2, averaged over the batch.
    """
    a = [max(-settings.largest, min(settings.largest, float(value))) for value in advantage]
    kept, kls, terms = [], [], []
    for i, text in enumerate(texts):
        x, target = (1 - sigma) * x0[i] + sigma * noise[i], noise[i] - x0[i]
        with torch.no_grad():
            base = model("base", x, sigma, text, settings.kl_cfg)
            old = model("ema_fast", x, sigma, text, 1.0)
        velocity = model("policy", x, sigma, text, 1.0)
        error = ((target - velocity) ** 2).mean()
        kl = ((velocity - base) ** 2).mean()
        kept.append(error)
        if settings.clip is not None:
            ratio = math.exp(float(((target - old) ** 2).mean()) - float(error.detach()))
            if ratio > 1 + settings.clip if a[i] > 0 else ratio < 1 - settings.clip:
                kept[i] = error.detach()
                kl = kl.detach() if settings.clip_kl else kl
        reference = old if settings.dynamic else base
        gap = float(error.detach()) - float(((target - reference) ** 2).mean())
        terms.append(a[i] * settings.beta * gap / group_size)
        kls.append(kl)
    total = torch.zeros((), dtype=torch.float64)
    for i, group in enumerate(groups):
        s = math.fsum(term for term, other in zip(terms, groups, strict=True) if other == group)
        total = total + a[i] * kept[i] / (1 + math.exp(-s)) + settings.kl * kls[i]
    return total / len(texts)


@dataclass
class AdamW:
    """torch's clip_grad_norm_ and AdamW (arXiv 1711.05101) on weights [n], with the code's betas and epsilon."""

    weights: np.ndarray
    rate: float
    weight_decay: float
    largest_norm: float
    updates: int = 0
    first: np.ndarray | float = 0.0
    second: np.ndarray | float = 0.0

    def update(self, gradient: np.ndarray) -> np.ndarray:
        """The weights after one update."""
        norm = math.sqrt(math.fsum(gradient**2))
        gradient = gradient * min(1.0, self.largest_norm / (norm + 1e-6))
        self.updates += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        mean, square = self.first / (1 - 0.9**self.updates), self.second / (1 - 0.999**self.updates)
        self.weights = self.weights * (1 - self.rate * self.weight_decay) - self.rate * mean / (np.sqrt(square) + 1e-8)
        return self.weights


@dataclass
class Averages:
    """Both moving averages of a list of weights [n], stepped as the loop steps them.

    An update is `micro_batches` micro-batches; after each of them, the last with the update behind it, the EMA
    is given the number of updates done and the weights at hand.
    """

    weights: np.ndarray
    micro_batches: int = 1
    updates: int = 0
    fast: np.ndarray = field(init=False)
    slow: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.fast, self.slow = self.weights.copy(), self.weights.copy()

    def update(self, weights: np.ndarray) -> None:
        """One iteration whose update leads to `weights`."""
        for i in range(self.micro_batches):
            if i == self.micro_batches - 1:
                self.weights = weights.copy()
                self.fast = self.fast + (1 - min(0.3, 0.001 * self.updates)) * (self.weights - self.fast)
                self.updates += 1
            k = self.updates
            if (k + 1) % 8 == 0:
                self.slow = self.slow + (1 - min((1 + k) / (10 + k), 0.9)) * (self.weights - self.slow)

    def rollouts(self, ema_rollouts_after: int) -> Literal["policy", "ema_fast"]:
        """Whose weights the next iteration's samples are drawn with."""
        return "ema_fast" if self.updates > ema_rollouts_after else "policy"
