"""What the rewards ask of a CLIP, and the one of transformers; open_clip's is in `open_clip_encoder`.

Legend: B images or texts, D width of the common space, S side of the network's input, L tokens.
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
    """Images and texts to unit vectors of one space."""

    logit_scale: float
    """exp(logit_scale): the factor of cosines in training, by custom 100 at most."""

    def __init__(self, preprocessing: Preprocessing, *, device: torch.device, dtype: torch.dtype) -> None:
        self.preprocessing = preprocessing
        self.device = device
        self.dtype = dtype

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W], float in [0, 1], of any size, to float32 [B, D] of length 1."""
        pixels = self.preprocessing(images.to(self.device))
        # Callers may be under autocast; the precision is the options' alone.
        with torch.autocast(self.device.type, enabled=False):
            return _unit(self._images(pixels.to(self.dtype)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> list[Text]:
        """Prompts, cut off where the network ends reading."""
        tokens, lengths, limit = self._tokens(texts)
        with torch.autocast(self.device.type, enabled=False):
            embeddings = _unit(self._texts({name: t.to(self.device) for name, t in tokens.items()}))
        # Rows of their own: a view would keep the whole batch alive in the cache.
        return [Text(e.clone(), n, n > limit) for e, n in zip(embeddings, lengths, strict=True)]

    @abstractmethod
    def _images(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, S, S] in `dtype` to embeddings [B, D] of any length."""

    @abstractmethod
    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], list[int], int]:
        """Token tensors [B, L] by name, the number of tokens before truncation, and the number that is read."""

    @abstractmethod
    def _texts(self, tokens: dict[str, Tensor]) -> Tensor:
        """Token tensors [B, L] to embeddings [B, D] of any length."""


class TransformersEncoder(Encoder):
    """A `CLIPModel` of transformers. Without a tokenizer it encodes images only, and the text tower is let go."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any | None,
        preprocessing: Preprocessing,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`model` in float32, as `loading.load_clip` returns it; it is moved to `device` and `dtype`."""
        super().__init__(preprocessing, device=device, dtype=dtype)
        # Taken before the cast: in bfloat16 the logarithm alone would move the scale by a percent.
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.width = int(model.config.projection_dim)
        self._limit = int(model.config.text_config.max_position_embeddings)
        self._tokenizer = tokenizer
        if tokenizer is None:
            model.text_model = model.text_projection = None
        self._model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)

    # Through the towers, for what `get_image_features` returns is not the same in every version of transformers.
    def _images(self, pixels: Tensor) -> Tensor:
        out: Tensor = self._model.visual_projection(self._model.vision_model(pixel_values=pixels).pooler_output)
        return out

    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], list[int], int]:
        assert self._tokenizer is not None
        # `verbose` off: it would warn of long prompts, once per process and without saying which.
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
