"""What Qwen-Image 2.1 without weights has in place of its processor and of its position tables."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["NoProcessor", "keep_tables"]


class NoProcessor:
    """A processor for QwenImage21Pipeline's constructor, which counts the tokens of its system prompt."""

    def __init__(self) -> None:
        self.tokenizer = self

    def apply_chat_template(self, conversation: object, **settings: object) -> list[list[int]]:
        """Return one text without tokens."""
        return [[]]

    def encode(self, text: str) -> list[int]:
        """Return one token."""
        return [0]


def keep_tables(transformer: Any) -> None:
    """Put the position tables of a `QwenImage21Transformer2DModel` on the CPU, from which it copies them when called:
    they are neither parameters nor buffers, and it computes positions from values, which a plan has on the CPU."""
    embedder = transformer.pos_embed
    embedder.freqs = [torch.ones(table.shape, dtype=table.dtype) for table in embedder.freqs]
