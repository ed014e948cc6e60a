"""The cost of operators, by hand, and CUDA's rules on a machine without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dgpo_lab.planning.cards import CARDS
from dgpo_lab.planning.imitation import CAPABILITY, imitated
from dgpo_lab.planning.kernels import Kernel
from dgpo_lab.planning.meter import Lap, Meter
from dgpo_lab.planning.shapes import CUDA

BF16, F32 = 2, 4


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=CUDA)


def lap_of(work: Callable[[], Any]) -> Lap:
    with Meter("here") as meter, meter.lap() as lap:
        work()
    return lap


def kernels(work: Callable[[], Any]) -> list[Kernel]:
    return list(lap_of(work).kernels.elements())


def test_a_matrix_product() -> None:
    (kernel,) = kernels(lambda: empty(30, 50, dtype=torch.bfloat16) @ empty(50, 70, dtype=torch.bfloat16))
    assert (kernel.name, kernel.kind, kernel.precision) == ("mm", "gemm", "bfloat16")
    assert kernel.operations == 2 * 30 * 50 * 70
    assert kernel.bytes == BF16 * (30 * 50 + 50 * 70 + 30 * 70)


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_where_it_is_allowed(allowed: bool) -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        found = kernels(lambda: (empty(8, 8) @ empty(8, 8), functional.conv2d(empty(1, 8, 9, 9), empty(4, 8, 3, 3))))
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert [kernel.precision for kernel in found] == ["tf32" if allowed else "float32"] * 2
    assert [kernel.kind for kernel in found] == ["gemm", "convolution"]
    assert found[1].operations == 2 * (7 * 7) * 4 * (8 * 3 * 3)


def test_bytes_of_elementwise_operators() -> None:
    x, row, gathered = 24 * 100, 100, 7 * 100

    def work() -> None:
        a, b = empty(24, 100), empty(1, 100)
        a * b  # a broadcast row is read once
        a + b.expand(24, 100)
        a.add_(1.0)
        a.zero_()
        a.to(torch.bfloat16)
        a.copy_(b)
        a[torch.zeros(7, dtype=torch.long, device=CUDA)]
        a.t().reshape(50, 48)  # a copy; the next ones are none
        a.view(48, 50).chunk(2)[0][None].expand(3, -1, -1)

    found = {kernel.name: kernel for kernel in kernels(work)}
    assert {name: kernel.bytes for name, kernel in found.items()} == {
        "mul": F32 * (x + row + x), "add": F32 * (x + row + x), "add_": F32 * 2 * x, "zero_": F32 * x,
        "_to_copy float32 to bfloat16": (F32 + BF16) * x, "copy_": F32 * (row + x), "zeros": 8 * 7,
        "index": 2 * F32 * gathered, "clone": F32 * 2 * x,
    }  # fmt: skip
    assert all(kernel.kind == "elementwise" and not kernel.operations for kernel in found.values())


@pytest.mark.parametrize(
    ("dtype", "mask", "name", "precision"),
    [
        (torch.bfloat16, False, "_scaled_dot_product_flash_attention", "bfloat16"),
        (torch.bfloat16, True, "_scaled_dot_product_efficient_attention", "bfloat16"),
        (torch.float32, False, "_scaled_dot_product_efficient_attention", "float32"),
    ],
)
def test_attention(dtype: torch.dtype, mask: bool, name: str, precision: str) -> None:
    """Two products forward; five backward, of which the model defines four."""
    batch, heads, rows, columns, width = 2, 3, 40, 24, 16

    def work() -> None:
        q, k, v = (empty(batch, heads, n, width, dtype=dtype).requires_grad_() for n in (rows, columns, columns))
        given = empty(1, 1, rows, columns, dtype=dtype) if mask else None
        functional.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=given).sum().backward()

    lap = lap_of(work)
    found = {kernel.name: kernel for kernel in lap.kernels if kernel.kind == "attention"}
    products = 2 * 2 * batch * heads * rows * columns * width
    assert {one: kernel.operations for one, kernel in found.items()} == {
        name: products, f"{name}_backward": 2.5 * products,
    }  # fmt: skip
    assert lap.operations == 3 * products
    assert {kernel.precision for kernel in found.values()} == {precision}


@pytest.mark.parametrize("heads", [(), (3, 1)])
def test_attention_without_four_dimensions_is_matrix_products(heads: tuple[int, ...]) -> None:
    """torch's fused kernels take four; two products forward, and two for each of them backward."""
    batch, rows, columns, width = 2, 40, 24, 16

    def work() -> None:
        q, k, v = (empty(batch, *heads, n, width).requires_grad_() for n in (rows, columns, columns))
        functional.scaled_dot_product_attention(q, k, v).sum().backward()

    lap = lap_of(work)
    assert not [kernel for kernel in lap.kernels if kernel.kind == "attention"]
    assert lap.operations == 6 * 2 * batch * math.prod(heads) * rows * columns * width


def test_lists_of_tensors_take_several_launches() -> None:
    """A launch takes 110 tensors of one list, and 320 chunks of 65,536 elements."""

    def norm(count: int, elements: int) -> int:
        return len(kernels(lambda: torch._foreach_mul_([empty(elements) for _ in range(count)], 2.0)))

    assert [norm(1, 10), norm(110, 10), norm(111, 10)] == [1, 1, 2]
    assert [norm(1, 320 * 65536), norm(1, 320 * 65536 + 1)] == [1, 2]


def test_autocast_has_the_rules_of_cuda() -> None:
    """Which keep layer norms in float32, where the CPU's run them in bfloat16; weights are cast once."""
    layer, norm = nn.Linear(8, 8, device="meta"), nn.LayerNorm(8, device="meta")
    with Meter("here", layer, norm) as meter, meter.lap() as lap, torch.autocast("cuda", torch.bfloat16):
        x = empty(4, 8)
        for _ in range(2):
            y = layer(x)
            assert y.dtype == torch.bfloat16
            assert norm(y).dtype == torch.float32
    assert sum(n for kernel, n in lap.kernels.items() if kernel.name == "_to_copy float32 to bfloat16") == 2 + 2
    assert sum(n for kernel, n in lap.kernels.items() if kernel.name == "_to_copy bfloat16 to float32") == 2


def test_ideal_times() -> None:
    """Of operations, of bytes, of a launch: whichever is longest, on an H200."""
    card = CARDS["h200"]
    for kernel, seconds in (
        (Kernel("mm", "gemm", "bfloat16", 671.5e12, 10), 1.0),
        (Kernel("flash", "attention", "bfloat16", 380e12, 10), 1.0),
        (Kernel("convolution", "convolution", "tf32", 196e12, 10), 1.0),
        (Kernel("mm", "gemm", "bfloat16", 10, int(3.87e12)), 1.0),
        (Kernel("add", "elementwise", "float32", 0, int(3.87e9)), 1e-3),
        (Kernel("add", "elementwise", "float32", 0, 4), 2.5e-6),
    ):
        assert card.seconds(kernel) == pytest.approx(seconds)
    assert card.ceiling == pytest.approx(790e12)
    faster = Kernel("mm", "gemm", "bfloat16", 1e15, 10)
    assert CARDS["b200"].seconds(faster) / card.seconds(faster) == pytest.approx(989 / 2250)


def test_nothing_is_left_of_the_imitation() -> None:
    before = torch.cuda.is_available(), torch.cuda.device_count(), torch.Generator, torch.cuda.Stream
    with imitated(), imitated():
        assert torch.cuda.is_available()
        assert torch.cuda.get_device_capability() == CAPABILITY
        generator = torch.Generator("cuda").manual_seed(1)
        assert isinstance(generator, torch.Generator)
    assert (torch.cuda.is_available(), torch.cuda.device_count(), torch.Generator, torch.cuda.Stream) == before
    assert not torch.is_autocast_enabled("cuda")


def test_values_that_are_known() -> None:
    """Of small tensors that were made on the host; views and in-place operators included."""
    with Meter("here") as meter, meter.lap() as lap:
        x = torch.tensor([1.0, 2.0, 3.0], device=CUDA)
        y = x * 2
        y[1:].add_(0.5)
        assert y.tolist() == [2.0, 4.5, 6.5]
        assert (y > 4).nonzero().flatten().tolist() == [1, 2]
        unknown = empty(3)
        assert unknown.tolist() == [1.0, 1.0, 1.0]
        y.copy_(unknown)
        assert y.tolist() == [1.0, 1.0, 1.0]
        assert float(x[2]) == 3.0
    assert lap.blocking.total() == 7  # the tensor, five reads, and one more for the size of what is not zero
