"""Interface of CLIP encoders, and the encoder of transformers; that of open_clip is in `open_clip_encoder`.

Legend: B images or texts, D width of the shared embedding space, S side of the network's input, L tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgpo_pickscore.cache import Text
from dgpo_pickscore.images import Preprocessing

__all__ = ["Encoder", "TransformersEncoder"]


class Encoder(ABC):
    """Encodes images and texts as unit vectors of a shared space."""

    logit_scale: float
    """exp(logit_scale): the factor of cosines in training, usually at most 100."""

    def __init__(self, preprocessing: Preprocessing, *, device: torch.device, dtype: torch.dtype) -> None:
        self.preprocessing = preprocessing
        self.device = device
        self.dtype = dtype

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Encode images [B, 3, H, W], float in [0, 1], of any size; returns unit vectors, float32 [B, D]."""
        pixels = self.preprocessing(images.to(self.device))
        # Callers may use autocast, but only the options determine the precision.
        with torch.autocast(self.device.type, enabled=False):
            return _unit(self._images(pixels.to(self.dtype)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> list[Text]:
        """Encode prompts, truncated to the network's maximum length."""
        tokens, lengths, limit = self._tokens(texts)
        with torch.autocast(self.device.type, enabled=False):
            embeddings = _unit(self._texts({name: t.to(self.device) for name, t in tokens.items()}))
        # Cloned, because views in the cache would keep the entire batch in memory.
        return [Text(e.clone(), n, n > limit) for e, n in zip(embeddings, lengths, strict=True)]

    @abstractmethod
    def _images(self, pixels: Tensor) -> Tensor:
        """Encode normalized pixels [B, 3, S, S] in `dtype`; returns embeddings [B, D] of any norm."""

    @abstractmethod
    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], list[int], int]:
        """Tokenize texts; returns tensors [B, L] by name, the numbers of tokens before truncation, and the maximum."""

    @abstractmethod
    def _texts(self, tokens: dict[str, Tensor]) -> Tensor:
        """Encode token tensors [B, L]; returns embeddings [B, D] of any norm."""


class TransformersEncoder(Encoder):
    """A `CLIPModel` of transformers. Without a tokenizer it encodes only images, and the text tower is freed."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any | None,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """model: float32, as returned by `loading.load_clip`; it is moved to `device` and `dtype`."""
        super().__init__(preprocessing, device=device, dtype=dtype)
        # Computed before the cast: rounding the logarithm to bfloat16 would change the scale by a percent.
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.width = int(model.config.projection_dim)
        self._limit = int(model.config.text_config.max_position_embeddings)
        self._tokenizer = tokenizer
        if tokenizer is None:
            model.text_model = model.text_projection = None
        self._model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)

    # Calls the towers directly, because the return type of `get_image_features` depends on the transformers version.
    def _images(self, pixels: Tensor) -> Tensor:
        out: Tensor = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
        return out

    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], list[int], int]:
        assert self._tokenizer is not None
        # With `verbose`, it would warn about long prompts once per process, without naming them.
        lengths = [len(ids) for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]]
        tokens = self._tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self._limit, return_tensors="pt"
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}, lengths, self._limit

    def _texts(self, tokens: dict[str, Tensor]) -> Tensor:
        out: Tensor = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        return out


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
