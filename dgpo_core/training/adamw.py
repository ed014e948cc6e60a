"""AdamW as configured: the optimizer, its learning rate, and its state as named tensors."""

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
"""Tables that bitsandbytes keeps once for all parameters."""


def make_adamw(parameters: Iterable[torch.nn.Parameter], section: OptimizerSection) -> torch.optim.Optimizer:
    """torch's fused AdamW, or bitsandbytes' with moments of 8 bits (Dettmers et al., arXiv 2110.02861).

    Raises UserError if bitsandbytes is asked for and absent.
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
            "optimizer.bits: moments of 8 bits need bitsandbytes: pip install 'dgpo[8bit]', or leave the key out"
        ) from error
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(list(parameters), **settings)
    return made


def learning_rate(section: OptimizerSection, update: int, total: int) -> float:
    """Learning rate of update number `update`, counted from 0, of a run that makes `total`."""
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
    """A parameter's moments and number of updates as tensors that share nothing with other parameters'."""
    found = {}
    for key, value in state.items():
        tensor = value if isinstance(value, Tensor) else torch.tensor(value)
        found[key] = tensor.clone() if key in SHARED else tensor
    return found


def restore(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, key: str, tensor: Tensor) -> None:
    """Put back one of the tensors that `state_of` gave; what was a number is one again."""
    whole = key == "step" and not tensor.is_floating_point()
    optimizer.state[parameter][key] = int(tensor) if whole else tensor
