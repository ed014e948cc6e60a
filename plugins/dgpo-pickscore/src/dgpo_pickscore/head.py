"""Heads of five linear layers without activations, as the aesthetic predictor and ImageReward have."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dgpo_pickscore.libraries import quiet
from dgpo_pickscore.loading import check_keys, file_in, read_tensors

__all__ = ["WIDTHS", "head_of", "linear", "load_head"]

WIDTHS = (1024, 128, 64, 16, 1)
"""Outputs of the layers."""


def load_head(source: str, name: str, revision: str | None, where: str) -> torch.nn.Sequential:
    """Load the aesthetic head, float32 on the CPU: linear layers to 1024, 128, 64, 16 and 1 without activations.

    source: a file, or a directory or Hub repository that contains the file `name`. Raises UserError if the file is
    missing, damaged or contains other tensors.
    """
    path = file_in(source, name, revision, where)
    return head_of(read_tensors(path, where), f"{where}: the head in {path}")


def head_of(tensors: Mapping[str, Tensor], what: str, prefix: str = "layers.") -> torch.nn.Sequential:
    """Build the head of tensors with names such as `layers.0.weight`, float32. Raises UserError, beginning with `what`,
    unless they are exactly those of a head."""
    first = tensors.get(f"{prefix}0.weight")
    head = _head(first.shape[1] if first is not None and first.dim() == 2 else 1)
    expected = {f"{prefix}{key}": value.shape for key, value in head.state_dict().items()}
    check_keys(what, expected, tensors)
    head.load_state_dict({key.removeprefix(prefix): value.float() for key, value in tensors.items()})
    return head.eval().requires_grad_(False)


def _head(width: int) -> torch.nn.Sequential:
    """Build the head with its dropout layers, which keep the indices of the weights' names."""
    a, b, c, d, e = WIDTHS
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    with quiet():
        return torch.nn.Sequential(
            linear(width, a),
            dropout(0.2),
            linear(a, b),
            dropout(0.2),
            linear(b, c),
            dropout(0.1),
            linear(c, d),
            linear(d, e),
        )


def linear(head: torch.nn.Sequential) -> tuple[Tensor, float]:
    """Return weight float64 [width] and bias of a head, which is one linear function."""
    layers = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
    weight, bias = layers[0].weight.double(), layers[0].bias.double()
    for layer in layers[1:]:
        weight, bias = layer.weight.double() @ weight, layer.weight.double() @ bias + layer.bias.double()
    return weight[0], float(bias)
