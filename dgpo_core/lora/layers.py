"""Forward and backward passes of adapted linear layers, in place of peft's: y = W x + b + s B (A x).

Shape letters: N rows (all leading dimensions of the input), I inputs, O outputs, R rank.

peft's forward pass spends more time on its bookkeeping than small layers on their products. `use_exact` replaces it by
one with the same bits. `use_copies` replaces it by one at the price of its arithmetic: the products use copies of A and
B in the dtype of the frozen weights, so that nothing is cast inside a layer, and B (A x) is added in the product's own
kernel.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["ADAPTER", "copies_of", "use_copies", "use_exact"]

ADAPTER = "default"
"""Adapter name in peft."""
DOWN, UP = "lora_A_copy", "lora_B_copy"
"""Names of the buffers with the copies of A and B."""


def use_exact(layer: Any) -> None:
    """Replace the forward pass of a peft layer by one with the same bits, if it is a plain LoRA of an `nn.Linear`."""
    from peft.tuners.lora.layer import Linear

    if type(layer).forward is Linear.forward and type(layer.base_layer) is nn.Linear and _is_plain(layer):
        layer.__class__ = _with_forward(_Exact, layer.__class__)


def use_copies(layer: Any, dtype: torch.dtype) -> bool:
    """Let a peft layer compute with copies of A and B in `dtype` (`copies_of`), which the caller fills in.

    Returns False and changes nothing if the frozen weights are float32, as in layers that a model keeps in float32.
    """
    assert _is_plain(layer), "variants of LoRA have no fast forward pass"
    if layer.get_base_layer().weight.dtype == torch.float32:
        return False
    for name, matrix in ((DOWN, layer.lora_A), (UP, layer.lora_B)):
        copy = torch.empty_like(matrix[ADAPTER].weight, dtype=dtype, requires_grad=False)
        layer.register_buffer(name, copy, persistent=False)
    peft_class = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("peft."))
    layer.__class__ = _with_forward(_Fast, peft_class)
    return True


def copies_of(layer: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The copies of A and B of a layer of `use_copies`, each with the float32 matrix that it is a copy of."""
    return (getattr(layer, DOWN), layer.lora_A[ADAPTER].weight), (getattr(layer, UP), layer.lora_B[ADAPTER].weight)


def _is_plain(layer: Any) -> bool:
    """Whether a layer adds s B (A x), without dropout, a bias of B, or a variant such as DoRA."""
    up = layer.lora_B[ADAPTER]
    return not layer.lora_variant and isinstance(layer.lora_dropout[ADAPTER], nn.Identity) and up.bias is None


@cache
def _with_forward(forward: type, peft_class: type) -> type:
    """A subclass of a class of peft with the forward pass of another class, under the same name."""
    same = {"__module__": peft_class.__module__, "__qualname__": peft_class.__qualname__}
    return type(peft_class.__name__, (forward, peft_class), same)


def _is_linear(layer: Any) -> bool:
    """Whether a layer does nothing but its product: quantized layers replace `forward`, users may add hooks."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
    )


class _Exact:
    """The forward pass of peft's `Linear` without its bookkeeping."""

    def forward(self: Any, x: Tensor) -> Tensor:
        base = self.base_layer
        if self._disable_adapters:
            unadapted: Tensor = base(x)
            return unadapted
        down, up, scale = self.lora_A[ADAPTER], self.lora_B[ADAPTER], self.scaling[ADAPTER]
        if _are_float32_matrices(x, down, up, base):
            matrices = down.weight, up.weight, base.weight, base.bias
            if not torch.is_grad_enabled():
                return _exact_products(x, *matrices, scale)[0]
            # As two arguments, x receives two gradients, which autograd adds in the order that peft's operations have.
            adapted: Tensor = _ExactProducts.apply(x, x, *matrices, scale)
            return adapted
        output: Tensor = base(x)
        update = up(down(x if x.dtype == down.weight.dtype else x.to(down.weight.dtype)))
        total = torch.add(output, update, alpha=scale) if _is_power_of_two(scale) else output + update * scale
        return total if total.dtype == output.dtype else total.to(output.dtype)


def _are_float32_matrices(x: Tensor, down: nn.Linear, up: nn.Linear, base: nn.Linear) -> bool:
    """Whether all of a layer's products are of float32 matrices, so that `_exact_products` has the same bits."""
    return (
        not torch.compiler.is_compiling()
        and x.dtype == down.weight.dtype == base.weight.dtype == torch.float32
        and x.is_contiguous()  # otherwise the products are batched ones
        and x.dim() > 1
        and all(map(_is_linear, (base, down, up)))
        and (x.is_meta or not torch.is_autocast_enabled(x.device.type))  # a meta tensor has no autocast
    )


def _is_power_of_two(scale: float) -> bool:
    """Whether a product with `scale` is exact, so that adding it in one operation rounds like two.

    Of results that overflow or are subnormal it is not.
    """
    return abs(math.frexp(scale)[0]) == 0.5


def _exact_products(
    x: Tensor, down: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output [..., O], the rows of x [N, I] and A x [N, R]."""
    rows = x.view(-1, x.shape[-1])
    output = torch.mm(rows, weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    hidden = torch.mm(rows, down.t())
    update = torch.mm(hidden, up.t())
    output = output.add_(update, alpha=scale) if _is_power_of_two(scale) else output.add_(update.mul_(scale))
    return output.view(*x.shape[:-1], -1), rows, hidden


class _ExactProducts(torch.autograd.Function):
    """The products of contiguous float32 rows, with the operations that autograd makes of peft's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, again: Tensor, down: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        output, rows, hidden = _exact_products(x, down, up, weight, bias, scale)
        ctx.save_for_backward(rows, hidden, down, up, weight)
        ctx.scale, ctx.shape = scale, x.shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, hidden, down, up, weight = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.shape[-1])
        scaled = gradient * ctx.scale
        of_hidden = scaled.mm(up)
        of_down, of_up = of_hidden.t().mm(rows), scaled.t().mm(hidden)
        if not ctx.needs_input_grad[0]:
            return None, None, of_down, of_up, None, None, None
        return (
            of_hidden.mm(down).view(ctx.shape), gradient.mm(weight).view(ctx.shape), of_down, of_up, None, None, None,
        )  # fmt: skip


class _Fast:
    """The forward pass with copies of A and B in the dtype of the frozen weights."""

    def forward(self: Any, x: Tensor) -> Tensor:
        base = self.base_layer
        if self._disable_adapters:
            unadapted: Tensor = base(x)
            return unadapted
        masters = self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight
        copies = getattr(self, DOWN), getattr(self, UP)
        x = x.to(copies[0].dtype)
        frozen = (base.weight, base.bias, None) if _is_linear(base) else (None, None, base(x))
        output: Tensor = _FastProducts.apply(x, *masters, *copies, *frozen, self.scaling[ADAPTER])
        return output


class _FastProducts(torch.autograd.Function):
    """W x + b + s B (A x) in the dtype of the copies of A and B; the gradients of A and B are float32.

    weight, bias: of a frozen linear layer; or `output` [..., O], what another frozen layer makes of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, down_copy: Tensor, up_copy: Tensor,
        weight: Tensor | None, bias: Tensor | None, output: Tensor | None, scale: float,
    ) -> Tensor:  # fmt: skip
        rows = x.reshape(-1, x.shape[-1])
        hidden = _scaled(rows, down_copy.t(), scale)  # s A x
        if weight is None:
            assert output is not None
            total = torch.addmm(output.reshape(-1, output.shape[-1]), hidden, up_copy.t())
        else:
            total = F.linear(rows, weight, bias).addmm_(hidden, up_copy.t())
        ctx.save_for_backward(rows, hidden, down_copy, up_copy, weight)
        ctx.scale, ctx.shape = scale, x.shape
        return total.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, hidden, down, up, weight = ctx.saved_tensors
        of_rows = gradient.reshape(-1, gradient.shape[-1])
        of_hidden = _scaled(of_rows, up, ctx.scale)
        of_down, of_up = _in_float32(of_hidden.t(), rows), _in_float32(of_rows.t(), hidden)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = of_hidden.mm(down) if weight is None else of_rows.mm(weight).addmm_(of_hidden, down)
            of_x = of_x.view(ctx.shape)
        of_output = gradient if weight is None else None
        return of_x, of_down, of_up, None, None, None, None, of_output, None


def _scaled(first: Tensor, second: Tensor, scale: float) -> Tensor:
    """The product of two matrices times a number, in one kernel."""
    return first.new_empty(len(first), second.shape[1]).addmm_(first, second, beta=0, alpha=scale)


def _in_float32(first: Tensor, second: Tensor) -> Tensor:
    """The product of two matrices as float32, which is what it is accumulated in."""
    if first.is_cuda:
        return torch.mm(first, second, out_dtype=torch.float32)
    return first.float() @ second.float()
