"""AdamW: construction, learning rate schedule, and state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError

if TYPE_CHECKING:
    from dgpo_schemas.sections.training import OptimizerSection

__all__ = ["learning_rate", "make_adamw", "restore", "state_of"]

SHARED = ("qmap1", "qmap2")
"""Quantization tables that bitsandbytes shares among all parameters."""


def make_adamw(parameters: Iterable[torch.nn.Parameter], section: OptimizerSection) -> torch.optim.Optimizer:
    """Create torch's fused AdamW, or bitsandbytes' AdamW with 8-bit moments (Dettmers et al., arXiv 2110.02861).

    Raises UserError if bitsandbytes is required but not installed.
    """
    betas = section.betas[0], section.betas[1]
    settings: dict[str, Any] = {
        "lr": section.learning_rate, "betas": betas, "eps": section.epsilon, "weight_decay": section.weight_decay,
    }  # fmt: skip
    if section.bits == 32:
        return torch.optim.AdamW(list(parameters), fused=True, **settings)
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(
            "optimizer.bits: 8-bit moments require bitsandbytes: pip install 'dgpo[8bit]', or remove this key"
        ) from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(list(parameters), **settings)
    return optimizer


def learning_rate(section: OptimizerSection, update: int, total: int) -> float:
    """Return the learning rate of update `update` (from 0) of `total`: linear warmup, then the configured schedule."""
    rate = section.learning_rate
    if update < section.warmup:
        return rate * (update + 1) / section.warmup
    left = 1 - (update - section.warmup) / max(total - section.warmup, 1)
    if section.schedule == "linear":
        return rate * max(left, 0.0)
    if section.schedule == "cosine":
        return rate * 0.5 * (1 - float(torch.tensor(torch.pi * max(left, 0.0), dtype=torch.float64).cos()))
    return rate


def state_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the optimizer state of one parameter as tensors that share no memory with other parameters' state."""
    tensors = {}
    for key, value in state.items():
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        tensors[key] = tensor.clone() if key in SHARED else tensor
    return tensors


def restore(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, key: str, tensor: Tensor) -> None:
    """Restore one tensor that `state_of` returned; an integer step count becomes an int again."""
    is_int = key == "step" and not tensor.is_floating_point()
    optimizer.state[parameter][key] = int(tensor) if is_int else tensor
