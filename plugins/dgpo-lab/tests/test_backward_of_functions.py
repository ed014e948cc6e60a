"""The backward pass on the calling thread, through functions that are written in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_lab.planning.backward import walk


class _ProductAndSum(torch.autograd.Function):
    """a * b + c and sum(a), between an argument that is no tensor and one without gradient."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, flag: bool, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(a, b)
        return a * b + c, a.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        a, b = ctx.saved_tensors
        of_product, of_sum = gradients
        return of_product * b + of_sum, None, of_product * a, None


def _gradients(run: Callable[[Tensor], Any], use_sum: bool) -> list[Tensor | None]:
    torch.manual_seed(0)
    a, b = (torch.randn(3, requires_grad=True) for _ in range(2))
    product, total = _ProductAndSum.apply(a * 2, True, b.exp(), torch.randn(3))
    run(product.sin().sum() * (total if use_sum else 1))
    return [a.grad, b.grad]


@pytest.mark.parametrize("use_sum", [True, False], ids=["both outputs", "one output"])
def test_functions_written_in_python_have_the_gradients_of_torch(use_sum: bool) -> None:
    found, expected = _gradients(walk, use_sum), _gradients(torch.Tensor.backward, use_sum)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
