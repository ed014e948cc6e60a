"""Qwen-Image 2.1 without weights: its processor, and its transformer on the meta device, where tensors have no values.

The transformer reads the values of the mask of image tokens. It is given that mask on the CPU, and computes with it
there until it reaches its layers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["NoProcessor", "accept_masks_on_cpu"]


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


def accept_masks_on_cpu(transformer: Any) -> None:
    """Let the layers of a `QwenImage21Transformer2DModel` on the meta device move what they are given there."""

    def moved(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return tuple(map(_on_meta, args)), {name: _on_meta(value) for name, value in kwargs.items()}

    for layer in (*transformer.transformer_blocks, transformer.norm_out):
        layer.register_forward_pre_hook(moved, with_kwargs=True)


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
