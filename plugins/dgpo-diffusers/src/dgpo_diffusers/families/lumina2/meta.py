"""Lumina2's position embeddings on the meta device, where tensors have no values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["without_values"]


@dataclass(frozen=True, slots=True)
class FullMask:
    """Stands for a mask of prompts without padding, of which the transformer reads the lengths."""

    shape: torch.Size

    def sum(self, dim: int) -> FullMask:
        return self

    def tolist(self) -> list[int]:
        return [self.shape[1]] * self.shape[0]


def without_values(embedder: Any) -> None:
    """Let a `Lumina2RotaryPosEmbed` read no values of tensors: every prompt is as long as possible.

    Its tables are neither parameters nor buffers; they are put on the CPU, from which it copies them when called.
    """

    def full(module: Any, given: tuple[Tensor, Tensor]) -> tuple[Tensor, FullMask]:
        latents, mask = given
        return latents, FullMask(mask.shape)

    embedder.freqs_cis = [torch.ones(table.shape, dtype=table.dtype) for table in embedder.freqs_cis]
    embedder.register_forward_pre_hook(full)
