"""Latents as tokens of 2x2 latents, for transformers that receive them so.

Shape letters: B samples, C latent channels, h w height and width in tokens.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["packed", "unpacked"]


def packed(x: Tensor) -> Tensor:
    """[B, C, 2 h, 2 w] to [B, h * w, 4 * C]. Features of a token are ordered by channel, then by position in the 2x2
    patch."""
    batch, channels, height, width = x.shape
    patches = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`: [B, h * w, 4 * C] to [B, C, height, width], which are 2 h and 2 w."""
    patches = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, height, width)
