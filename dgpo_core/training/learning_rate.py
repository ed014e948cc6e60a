"""The learning rate's course."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dgpo_schemas.sections.training import OptimiserSection

__all__ = ["learning_rate"]


def learning_rate(section: OptimiserSection, update: int, total: int) -> float:
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
