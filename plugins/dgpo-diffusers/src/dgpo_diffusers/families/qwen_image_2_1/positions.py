"""Positions of Qwen-Image 2.1's tokens in a batch of prompts of different lengths.

Text tokens have the positions 0, 1, ..., and the image the position after the last of them. diffusers' transformer
computes the positions of the first row for the whole batch, with padding, so that an image would depend on the longest
prompt of its batch. Shape letters: B rows, T text tokens with padding, S all tokens, D / 2 pairs of a head's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dgpo_core.transfers import to_device

__all__ = ["OfRows", "own_positions"]


class OfRows:
    """Rotary embeddings [B, S, D / 2] of every row, in place of those [S, D / 2] of all rows.

    The attention layers call `unsqueeze(1)`, to multiply with queries and keys [B, S, heads, D / 2].
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def unsqueeze(self, dim: int) -> Tensor:
        """Add the dimension of the heads, after that of the tokens."""
        return self.values.unsqueeze(dim + 1)


def own_positions(embedder: nn.Module, lengths: Sequence[int], padded: int) -> RemovableHandle:
    """Give the image of each row the position after its own text, as long as the handle's context is active.

    embedder: the transformer's `QwenImage21Rope`; lengths: of the texts, of B rows; padded: T.
    """

    def positions(module: Any, given: Any, found: Tensor) -> OfRows:
        frame = module.freqs[0]  # [positions, pairs of the frame axis], the first of the three axes
        rows = found.repeat(len(lengths), 1, 1)
        ends = to_device(lengths, found.device)
        rows[:, padded:, : frame.shape[1]] = frame[ends][:, None]
        return OfRows(rows)

    return embedder.register_forward_hook(positions)
