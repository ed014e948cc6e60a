"""Transformers in float64 from the formulas, on tensors by name: what the rewards are compared with.

Nothing here comes from transformers, open_clip or the package. B images or texts, L positions, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    """The approximation that SigLIP was trained with."""
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].double().T + w[f"{name}.bias"].double()


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered / (centered.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled * w[f"{name}.weight"].double() + w[f"{name}.bias"].double()


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, visible: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d)) v, head by head; visible: bool, broadcast to [B, L, L']."""
    found = []
    for q, k, v in zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True):
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if visible is not None:
            scores = scores.masked_fill(~visible, -math.inf)
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        found.append(weights @ v)
    return torch.cat(found, -1)


def patches(w: Weights, name: str, pixels: Tensor) -> Tensor:
    """A convolution whose stride is its size, as a sum over each patch; [B, P, W]."""
    kernel = w[f"{name}.weight"].double()
    side = kernel.shape[-1]
    rows = [
        (pixels[:, None, :, y : y + side, x : x + side] * kernel).sum((2, 3, 4))
        for y in range(0, pixels.shape[2], side)
        for x in range(0, pixels.shape[3], side)
    ]
    bias = w.get(f"{name}.bias")
    return torch.stack(rows, 1) + (0 if bias is None else bias.double())


def block(
    w: Weights,
    norms: tuple[str, str],
    attend: Callable[[Tensor], Tensor],
    layers: tuple[str, str],
    x: Tensor,
    eps: float,
    act: Callable[[Tensor], Tensor] = gelu,
) -> Tensor:
    """A layer with norms before attention and MLP."""
    x = x + attend(norm(w, norms[0], x, eps))
    return x + linear(w, layers[1], act(linear(w, layers[0], norm(w, norms[1], x, eps))))


def fused(w: Weights, name: str, out: str, heads: int, visible: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Self-attention with one matrix for query, key and value: `name` with weight and bias, with a separator."""

    def attend(x: Tensor) -> Tensor:
        q, k, v = (x @ w[f"{name}weight"].double().T + w[f"{name}bias"].double()).chunk(3, -1)
        return linear(w, out, attention(q, k, v, heads, visible))

    return attend


def separate(w: Weights, names: Sequence[str], heads: int, visible: Tensor | None = None) -> Callable[..., Tensor]:
    """Attention with matrices of its own for query, key, value and output; to another sequence if there is one."""

    def attend(x: Tensor, other: Tensor | None = None) -> Tensor:
        read = x if other is None else other
        q, k, v = linear(w, names[0], x), linear(w, names[1], read), linear(w, names[2], read)
        return linear(w, names[3], attention(q, k, v, heads, visible))

    return attend


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()
