"""SigLIP score: cosine of text and image in a SigLIP or SigLIP 2 model of transformers.

Legend: B images or texts, D width of the shared embedding space, S side of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, SiglipModel, SiglipTokenizer

from dgpo_core.errors import UserError
from dgpo_pickscore import loading
from dgpo_pickscore.base import CosineReward
from dgpo_pickscore.encoders import Encoder
from dgpo_pickscore.images import Preprocessing

if TYPE_CHECKING:
    from dgpo_pickscore.options import SiglipOptions

__all__ = ["SiglipEncoder", "SiglipReward"]

VOCABULARIES = ("tokenizer.json", "spiece.model")
"""Of SigLIP 2 and of SigLIP."""


class SiglipEncoder(Encoder):
    """A `SiglipModel` of transformers.

    Its text tower returns the state of the last position, padding included, and was trained without an attention mask:
    texts are padded to exactly its number of positions (64), on the right, and no mask is passed. Texts are
    lower-cased, as in training; the tokenizers of some checkpoints do not do that.
    """

    def __init__(
        self, model: Any, tokenizer: Any, preprocessing: Preprocessing, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        """model: float32, as returned by `loading.load_model`; it is moved to `device` and `dtype`."""
        super().__init__(preprocessing, device=device, dtype=dtype)
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.logit_bias = float(model.logit_bias.detach().float())
        self._limit = int(model.config.text_config.max_position_embeddings)
        self._tokenizer = tokenizer
        self._model = model.eval().requires_grad_(False).to(device=device, dtype=dtype)

    def _images(self, pixels: Tensor) -> Tensor:
        out: Tensor = self._model.vision_model(pixel_values=pixels).pooler_output
        return out

    def _tokens(self, texts: Sequence[str]) -> tuple[dict[str, Tensor], list[int], int]:
        lowered = [text.lower() for text in texts]
        lengths = [len(ids) for ids in self._tokenizer(lowered, verbose=False)["input_ids"]]
        tokens = self._tokenizer(
            lowered,
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self._limit,
            return_tensors="pt",
        )
        return {"input_ids": tokens["input_ids"]}, lengths, self._limit

    def _texts(self, tokens: dict[str, Tensor]) -> Tensor:
        out: Tensor = self._model.text_model(**tokens).pooler_output
        return out


class SiglipReward(CosineReward):
    """SigLIP score: the cosine of text and image (Zhai et al., arXiv 2303.15343; SigLIP 2: arXiv 2502.14786).

    Not the model's probability, the sigmoid of scale * cosine + bias, which is small even for right captions; it is in
    the diagnostics. Diagnostics: cosine, percent, probability, tokens, truncated.
    """

    range = (-1.0, 1.0)

    def __init__(self, options: SiglipOptions, *, device: torch.device) -> None:
        """Load model, tokenizer and preprocessing. Raises UserError if one is missing, damaged or does not match."""
        where = "reward siglipscore: option model"
        directory = loading.fetch(options.model, options.revision, where, [*loading.WEIGHTS, *loading.PROCESSOR])
        model = loading.load_model(directory, where, "siglip", SiglipModel)
        preprocessing = loading.load_preprocessing(directory, where, crops=False)
        side = model.config.vision_config.image_size
        if preprocessing.crop != (side, side):
            raise UserError(f"{where}: {options.model} resizes to {preprocessing.crop}, but requires {(side, side)}")
        tokenizer = _tokenizer(directory, where)
        encoder = SiglipEncoder(model, tokenizer, preprocessing, device=device, dtype=getattr(torch, options.dtype))
        origin = {"model": options.model, "revision": loading.commit(directory, options.revision)}
        super().__init__(options, device=device, origin=origin, encoder=encoder)

    def _scales(self, cosine: float) -> Mapping[str, float]:
        assert isinstance(self.encoder, SiglipEncoder)
        logit = self.encoder.logit_scale * cosine + self.encoder.logit_bias
        return {**super()._scales(cosine), "probability": (1 + math.tanh(logit / 2)) / 2}


def _tokenizer(directory: Path, where: str) -> Any:
    """Load the tokenizer. SigLIP's own class removes punctuation, which its tokenizer.json may not do; a tokenizer.json
    of SigLIP 2 is used as it is. Raises UserError if it does not mark the end of a text."""
    kind = SiglipTokenizer if (directory / "spiece.model").is_file() else PreTrainedTokenizerFast
    tokenizer = loading.load_tokenizer(directory, where, kind, VOCABULARIES)
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise UserError(f"{where}: the tokenizer of {directory} does not end texts with its end token")
    return tokenizer
