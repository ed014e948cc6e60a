"""A backward pass on the calling thread.

torch's engine runs the nodes of CUDA tensors on threads of their device, which an imitated device does not have. This
walk runs the same nodes in the same order, with the conversions that the engine makes between them: sums over broadcast
dimensions, casts to the dtype of the forward pass, additions where a tensor was used several times.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import GraphExecGroup

__all__ = ["walk"]

LEAF = "AccumulateGrad"
Buffers = dict[int, list[Tensor | None]]
"""Gradients of the outputs of each node that is not done, by the node's number."""


def walk(output: Tensor, gradient: Tensor | None = None, *arguments: Any, **keywords: Any) -> None:
    """Accumulate the gradients of `output` in its leaves, like `output.backward(gradient)`, and free its graph.

    A node frees what it saved as soon as nothing refers to it. `output` therefore loses its graph; the caller must not
    keep other tensors of it if memory is measured.
    """
    if arguments or any(keywords.get(name) for name in ("retain_graph", "create_graph", "inputs")):
        raise NotImplementedError("a backward pass without values cannot keep its graph or select its leaves")
    with torch.no_grad(), GraphExecGroup():  # the group: checkpointed blocks are recomputed once
        gradient = torch.ones_like(output) if gradient is None else gradient
        node, number = output.grad_fn, output.output_nr
        if node is None:
            _accumulate(output, gradient)
            return
        with suppress(RuntimeError):  # of a view
            output.detach_()
        buffers: Buffers = {}
        _put(buffers, node, number, gradient)
        _run(node, buffers)


def _run(root: Any, buffers: Buffers) -> None:
    waiting = _uses(root)
    ready = [(-root._sequence_nr(), root)]
    del root
    while ready:
        number, node = heapq.heappop(ready)
        gradients = buffers.pop(-number)
        following, inputs = _called(node, gradients)
        del gradients, node
        for i, (child, output) in enumerate(following):
            gradient, inputs[i] = inputs[i], None
            if child is None:
                continue
            if gradient is not None:
                gradient = _converted(gradient, child._input_metadata[output])
            _put(buffers, child, output, gradient)
            key = _number(child)
            waiting[key] -= 1
            if not waiting[key] and key < 0:
                (gradient,) = buffers.pop(key)
                if gradient is not None:
                    _accumulate(child.variable, gradient)
            elif not waiting[key]:
                heapq.heappush(ready, (-key, child))
            del child, gradient
        del following


def _called(node: Any, gradients: list[Tensor | None]) -> tuple[Any, list[Tensor | None]]:
    """Run a node; return the nodes that follow, and the gradient for each."""
    if not isinstance(node, BackwardCFunction):
        inputs = node(*gradients)
        return node.next_functions, list(inputs) if isinstance(inputs, Sequence) else [inputs]
    # A function in Python returns a gradient for each of its arguments, tensors or not.
    whole = [_zeros(node, i) if gradient is None else gradient for i, gradient in enumerate(gradients)]
    found: Any = node.apply(*whole)  # type: ignore[no-untyped-call]
    found = found if isinstance(found, tuple) else (found,)
    needed = [gradient for gradient, needs in zip(found, node.needs_input_grad, strict=False) if needs]
    return [edge for edge in node.next_functions if edge[0] is not None], needed


def _zeros(node: Any, output: int) -> Tensor:
    forward = node._input_metadata[output]
    return torch.zeros(tuple(forward.shape), dtype=forward.dtype, device=forward.device)


def _number(node: Any) -> int:
    """Return a number that is the node's own: its place in the forward pass; of a leaf a negative one."""
    return -id(node.variable) if node.name().endswith(LEAF) else int(node._sequence_nr())


def _uses(root: Any) -> dict[int, int]:
    """Count, for each node by its number, the edges that lead to it. Holds no node."""
    uses: dict[int, int] = {}
    stack = [root]
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is None:
                continue
            key = _number(child)
            if key not in uses and key >= 0:
                stack.append(child)
            uses[key] = uses.get(key, 0) + 1
    return uses


def _put(buffers: Buffers, node: Any, output: int, gradient: Tensor | None) -> None:
    """Add the gradient of one of a node's outputs."""
    slots = buffers.setdefault(_number(node), [None] * len(node._input_metadata))
    before = slots[output]
    slots[output] = gradient if before is None else before if gradient is None else before + gradient


def _converted(gradient: Tensor, forward: Any) -> Tensor:
    """Return a gradient in the shape and dtype of the tensor of the forward pass."""
    shape = torch.Size(forward.shape)
    if gradient.shape != shape:
        gradient = gradient.sum_to_size(shape)
    return gradient.to(forward.dtype)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    """Add to a leaf's gradient; the first one is taken without a copy if it has the leaf's layout."""
    if leaf.grad is not None:
        leaf.grad += gradient
    elif gradient.stride() == leaf.stride():
        leaf.grad = gradient.detach()
    else:
        leaf.grad = torch.empty_like(leaf).copy_(gradient)
    for hook in (getattr(leaf, "_post_accumulate_grad_hooks", None) or {}).values():
        hook(leaf)
