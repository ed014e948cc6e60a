"""Normalization layers of diffusers computed by torch's fused kernels (`precision.norms: fast`).

diffusers computes an RMSNorm in six operations, each of which reads and writes all activations and rounds them. torch's
kernel reads them once, computes in float32 and rounds once; the same holds for the shift of an adaptive normalization.
Shape letters: B samples, S tokens, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from diffusers.models import normalization
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FusedNorms", "fuse_norms"]


def _rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    """Normalize [..., D]. Other dtypes than the weight's are left to diffusers, which promotes them."""
    x, weight = hidden_states, self.weight
    if weight is not None and weight.dtype != x.dtype:
        unfused: Tensor = normalization.RMSNorm.forward(self, x)
        return unfused
    # Heads [B, heads, S, D] are a view of [B, S, heads, D]; the kernel would copy what is not contiguous.
    heads = x.dim() == 4 and not x.is_contiguous() and x.transpose(1, 2).is_contiguous()
    out = F.rms_norm(x.transpose(1, 2) if heads else x, tuple(self.dim), weight, self.eps)
    out = out if self.bias is None else out + self.bias
    return out.transpose(1, 2) if heads else out


def _ada_layer_norm_zero(
    self: Any, x: Tensor, timestep: Any = None, class_labels: Any = None, hidden_dtype: Any = None, emb: Any = None
) -> tuple[Tensor, ...]:
    """Normalize and modulate x [B, S, D] by the embedding [B, E]; also return gate, shift, scale and gate [B, D]."""
    if self.emb is not None:
        emb = self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
    shift, scale, gate, *others = self.linear(self.silu(emb)).chunk(6, dim=1)
    return _modulated(self.norm(x), scale, shift), gate, *others


def _ada_layer_norm_zero_single(self: Any, x: Tensor, emb: Any = None) -> tuple[Tensor, Tensor]:
    """Normalize and modulate x [B, S, D] by the embedding [B, E]; also return the gate [B, D]."""
    shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
    return _modulated(self.norm(x), scale, shift), gate


def _ada_layer_norm_zero_x(self: Any, hidden_states: Tensor, emb: Any = None) -> tuple[Tensor, ...]:
    """Normalize [B, S, D] once and modulate it twice by the embedding [B, E], for two attentions."""
    found = self.linear(self.silu(emb)).chunk(9, dim=1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, shift_2, scale_2, gate_2 = found
    x = self.norm(hidden_states)
    first, second = _modulated(x, scale, shift), _modulated(x, scale_2, shift_2)
    return first, gate, shift_mlp, scale_mlp, gate_mlp, second, gate_2


def _ada_layer_norm_continuous(self: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    """Normalize and modulate x [B, S, D] by the embedding [B, E]."""
    scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
    return _modulated(self.norm(x), scale, shift)


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x [B, S, D] times 1 + scale [B, D], plus shift [B, D]."""
    factor, shift = 1 + scale[:, None], shift[:, None]
    if x.dtype == factor.dtype == shift.dtype:
        return torch.addcmul(shift, x, factor)
    return x * factor + shift


FORWARDS: dict[type[nn.Module], Callable[..., Any]] = {
    normalization.RMSNorm: _rms_norm,
    normalization.AdaLayerNormZero: _ada_layer_norm_zero,
    normalization.AdaLayerNormZeroSingle: _ada_layer_norm_zero_single,
    normalization.SD35AdaLayerNormZeroX: _ada_layer_norm_zero_x,
    normalization.AdaLayerNormContinuous: _ada_layer_norm_continuous,
}
"""The fused forward pass by class of diffusers."""
OTHERS = "LuminaRMSNormZero", "LuminaLayerNormContinuous", "AdaLayerNormSingle", "SanaModulatedNorm"
"""Classes that only contain a normalization, which is one of those, or torch's own."""


@dataclass(frozen=True)
class FusedNorms:
    """Numbers of normalization layers by the name of their class: fused, and left as they are."""

    fused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        fused, left = (", ".join(f"{n} {name}" for name, n in sorted(c.items())) for c in (self.fused, self.left))
        return (fused or "none that is not fused already") + (f"; exact: {left}" if left else "")


def fuse_norms(networks: Iterable[nn.Module]) -> FusedNorms:
    """Replace the forward passes of the normalization layers of networks that have a fused form.

    torch's own LayerNorm, GroupNorm and RMSNorm are fused already. Other classes are left as they are and counted.
    """
    found = FusedNorms()
    for module in (module for network in networks for module in network.modules()):
        kind = type(module)
        name = kind.__name__
        if kind in FORWARDS:
            module.__class__ = _fused(kind)  # type: ignore[arg-type]
            found.fused[name] += 1
        elif "norm" in name.lower() and not kind.__module__.startswith("torch.nn.") and name not in OTHERS:
            found.left[name] += 1
    return found


@cache
def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    """A subclass with the fused forward pass, under the same name."""
    same = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), {"forward": FORWARDS[kind], **same})
