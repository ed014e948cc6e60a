"""Models with weights of torchao or bitsandbytes: which layers have them, where they are, and how large they are."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["dequantize_again", "is_quantized", "layers_to_quantize", "place", "stored_bytes"]

LIBRARIES = ("torchao", "bitsandbytes")
NF4_BLOCK = 64
"""Weights that share a scale in bitsandbytes' nf4."""


def layers_to_quantize(model: nn.Module) -> list[str]:
    """Return the names of the linear layers inside lists of blocks, except those that the class keeps in float32."""
    lists = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(lists) and not kept & set(name.split("."))
    ]


def is_quantized(model: nn.Module) -> bool:
    """Whether a layer of a model has weights of torchao or bitsandbytes."""
    return any(
        type(one).__module__.startswith(LIBRARIES)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for one in (module, module.weight, module.weight.data)
    )


def place(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device. Those of bitsandbytes are loaded on theirs, and the libraries refuse to move them."""
    if not any(type(module).__module__.startswith("bitsandbytes") for module in model.modules()):
        model.to(device)


def stored_bytes(method: str, weight: Tensor) -> int:
    """Return the bytes of a weight [outputs, inputs] quantized by a method, with its float32 scales."""
    if method == "bnb-nf4":
        return weight.numel() // 2 + 4 * -(-weight.numel() // NF4_BLOCK)
    return weight.numel() + 4 * weight.shape[0]


def dequantize_again(layers: Iterable[Any]) -> None:
    """Let frozen linear layers dequantize their weights anew for a backward pass, as bitsandbytes' do.

    Otherwise autograd keeps the dequantized weights of torchao between the two passes, which would take more memory
    than without quantization. A layer without quantized weights, of a meta model, allocates what one with them does.
    """
    for layer in layers:
        layer.forward = partial(_linear, layer)


def _linear(layer: Any, x: Tensor) -> Tensor:
    output: Tensor = _Dequantizing.apply(x, layer.weight, layer.bias)
    return output


def _of_torchao(weight: Tensor) -> bool:
    return type(weight).__module__.startswith("torchao")


class _Dequantizing(torch.autograd.Function):
    """A linear layer whose weight and bias have no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        # torchao's own kernel may scale the product instead of the weight
        whole = weight if _of_torchao(weight) else weight.clone()
        return nn.functional.linear(x, whole, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,), weight = gradients, ctx.weight
        weight = weight.dequantize() if _of_torchao(weight) else weight.clone()
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None
