"""Pairs of an adapter where a model's first publication has one layer, and diffusers several, or another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["side_by_side", "swapped"]


def swapped(up: Tensor) -> Tensor:
    """A matrix [outputs, rank] whose two halves, scale and shift, change places."""
    scale, shift = up.chunk(2)
    return torch.cat([shift, scale])


def side_by_side(parts: Mapping[int, tuple[Tensor, Tensor]], outputs: Sequence[int]) -> tuple[Tensor, Tensor]:
    """One pair (A, B) for a layer of several parts: each writes its own outputs, and those that are not adapted get
    zeros. parts: by their places; outputs: how many each place has."""
    downs = torch.cat([down for down, _ in parts.values()])
    ups = torch.zeros(sum(outputs), len(downs))
    column = 0
    for place, (down, up) in parts.items():
        first = sum(outputs[:place])
        ups[first : first + outputs[place], column : column + len(down)] = up
        column += len(down)
    return downs, ups
