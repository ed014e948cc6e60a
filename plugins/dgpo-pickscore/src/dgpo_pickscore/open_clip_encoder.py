"""CLIP encoder of open_clip, an optional dependency."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_pickscore.encoders import Encoder
from dgpo_pickscore.images import Preprocessing

__all__ = ["OpenClipEncoder", "import_open_clip"]


class OpenClipEncoder(Encoder):
    """A model of open_clip with its tokenizer."""

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """model: float32; it is moved to `device` and `dtype`."""
        super().__init__(preprocessing, device=device, dtype=dtype)
        self._tokenizer = tokenizer
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self._model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)

    def _images(self, pixels: Tensor) -> Tensor:
        out: Tensor = self._model.encode_image(pixels)
        return out

    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], list[int], int]:
        tokens: Tensor = self._tokenizer(list(texts))
        limit = tokens.shape[1]
        return {"text": tokens}, [self._length(text) for text in texts], limit

    def _length(self, text: str) -> int:
        """Count tokens before truncation, which open_clip does not report. CLIP's own tokenizer adds start and end
        tokens after `encode`; other tokenizers wrap one of transformers."""
        wrapped = getattr(self._tokenizer, "tokenizer", None)
        if wrapped is None:
            return len(self._tokenizer.encode(text)) + 2
        clean = getattr(self._tokenizer, "clean_fn", str)
        return len(wrapped(clean(text), verbose=False)["input_ids"])

    def _texts(self, tokens: dict[str, Tensor]) -> Tensor:
        out: Tensor = self._model.encode_text(tokens["text"])
        return out


def import_open_clip(reward: str) -> Any:
    """Import open_clip. Raises UserError if it is missing."""
    try:
        return importlib.import_module("open_clip")
    except ImportError as error:
        raise UserError(
            f"reward {reward} requires open_clip ({error}): pip install 'dgpo-pickscore[open-clip]'"
        ) from error
