"""Compile the repeated blocks of denoisers with torch.compile.

All blocks of a class share their graphs, so that compiling takes seconds per class of blocks and not minutes per
network. What is between the blocks stays eager.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["BACKEND", "compile_blocks", "repeated_blocks"]

BACKEND = "inductor"


def repeated_blocks(network: Any, blocks: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Return the modules of the classes that diffusers names as repeated (`_repeated_blocks`); of a network without
    such names `blocks` (`Backbone.blocks`), or itself."""
    names = set(getattr(network, "_repeated_blocks", None) or ())
    found = [module for module in network.modules() if type(module).__name__ in names]
    return found or blocks or [network]


def compile_blocks(network: nn.Module, blocks: Sequence[nn.Module], *, ragged: bool) -> None:
    """Compile the repeated blocks of a denoiser in place: parameters keep their names.

    Shapes are fixed, except that rows of texts (`ragged`) have a length of their own in each batch, for which dynamic
    shapes are compiled from the second length on.
    """
    for block in repeated_blocks(network, blocks):
        block.compile(backend=BACKEND, dynamic=None if ragged else False)
